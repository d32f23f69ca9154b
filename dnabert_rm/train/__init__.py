"""Pretraining: ranks, the DeepSpeed engine, the loop, checkpoints, TensorBoard."""
