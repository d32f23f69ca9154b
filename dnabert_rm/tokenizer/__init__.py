"""The k-mer vocabulary as a Hugging Face tokenizer."""

from dnabert_rm.tokenizer.kmer_tokenizer import KmerTokenizer

__all__ = ["KmerTokenizer"]
