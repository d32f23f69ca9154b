"""Pretrain DNA BERTs with RandomMask, export them, fine-tune and evaluate them."""

__version__ = "0.1.0"
