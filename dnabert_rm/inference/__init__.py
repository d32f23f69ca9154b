"""Predictions, embeddings and variant scores of sequences of any length."""
