"""Whole genomes to WebDataset shards of k-mer or BPE token ids. CPU only, never imports torch."""
