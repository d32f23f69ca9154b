"""Export of a checkpoint as a self-checked Hugging Face folder."""
