"""Genome sequences: k-mers, FASTA, VCF, random access. Torch-free."""
