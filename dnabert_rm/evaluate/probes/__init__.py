"""Probes: linear models on frozen embeddings, beside baselines without a pretrained model."""
