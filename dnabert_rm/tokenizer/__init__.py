"""Hugging Face tokenizer for overlapping and non-overlapping k-mers."""

from dnabert_rm.tokenizer.kmer_tokenizer import KmerTokenizer

__all__ = ["KmerTokenizer"]
