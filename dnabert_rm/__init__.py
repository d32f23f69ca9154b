"""Pretraining of DNA BERTs with RandomMask: order, masking, training, export, fine-tuning."""

__version__ = "0.1.0"
