"""FASTA: where its bases are (`scan`), regions read back (`contigs`), and records as a stream (`stream`)."""
