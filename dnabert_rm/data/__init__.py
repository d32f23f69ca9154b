"""Which window comes when (order), reading it (reader), handing it to the ranks (loader)."""
