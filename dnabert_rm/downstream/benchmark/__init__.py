"""Parts of `gue`: data sets, settings, runs in processes of their own, the table."""
