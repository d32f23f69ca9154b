"""Checkpoints: save, verify, load, resume, convert to another number of ranks."""
