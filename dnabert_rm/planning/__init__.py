"""Estimates before a run: memory by ZeRO stage, communication, disk space. Torch-free."""
