"""Conversion of whole genomes to WebDataset shards of k-mer or BPE token ids. Runs on CPUs and never imports torch."""
