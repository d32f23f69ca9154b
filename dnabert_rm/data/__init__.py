"""Prepared data: the files on disk, the order of the training windows, and the loader that makes batches."""
