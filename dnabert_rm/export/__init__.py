"""Export of a checkpoint as a Hugging Face folder that has been checked against the training model."""
