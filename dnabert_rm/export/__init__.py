"""Export a checkpoint as a Hugging Face folder, and check that the exported model matches the trained model."""
