"""Checkpoints: save, verify, load, resume, and convert to another number of ranks."""
