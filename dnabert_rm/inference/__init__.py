"""Predictions and embeddings of sequences of any length, and scores of variants."""
