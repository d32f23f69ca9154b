"""Command `build`: convert FASTA files to a folder of shards with a manifest."""
