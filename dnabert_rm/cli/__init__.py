"""Commands of `dnabert-rm`, one file per command."""
