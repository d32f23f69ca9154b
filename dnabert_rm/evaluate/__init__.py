"""Evaluation of models: benchmark suites, probes of frozen embeddings, and bits per base."""
