"""The commands of `dnabert-rm`, one short file each."""
