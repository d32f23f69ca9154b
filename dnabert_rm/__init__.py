"""Pretraining of DNA BERTs with RandomMask, and their export, fine-tuning and evaluation."""

__version__ = "0.1.0"
