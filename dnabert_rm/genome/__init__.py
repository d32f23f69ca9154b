"""Genome sequences: k-mers, FASTA, VCF and random access to contigs. Torch-free."""
