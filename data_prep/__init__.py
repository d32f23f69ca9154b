"""Whole genomes to WebDataset shards of k-mer token ids; CPU only, never imports torch."""
