"""Estimates before a run: memory by ZeRO stage, communication, disk space. Does not import torch."""
