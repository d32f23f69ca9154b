"""Command `labels`: labelled sequences for fine-tuning, from intervals and a genome."""
