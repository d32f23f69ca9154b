"""Tokenizers of DNA: k-mers, overlapping or not, and BPE."""

from dnabert_rm.tokenizer.bpe_tokenizer import BpeTokenizer
from dnabert_rm.tokenizer.kmer_tokenizer import KmerTokenizer

DnaTokenizer = KmerTokenizer | BpeTokenizer
"""Either tokenizer. Both have `token_ids`, `token_ranges`, `vocab_size` and `save_pretrained`."""

__all__ = ["BpeTokenizer", "DnaTokenizer", "KmerTokenizer"]
