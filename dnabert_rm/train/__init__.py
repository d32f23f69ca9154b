"""Pretraining: training loop, DeepSpeed engine, validation, metrics and stop requests."""
