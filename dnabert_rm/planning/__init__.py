"""Estimates before a run: memory by ZeRO stage, messages, disk space. Torch-free."""
