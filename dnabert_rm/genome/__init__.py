"""Genome sequences without torch: k-mers, FASTA, VCF, random access to contigs."""
