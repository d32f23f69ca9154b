"""Export a checkpoint as a Hugging Face folder, and check the exported model against training."""
