"""Fine-tuning of a pretrained encoder on labelled tables."""
