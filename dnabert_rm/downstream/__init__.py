"""What is done with a pretrained model: export, fine-tuning, predictions."""
