"""The GUE benchmark: fine-tuning on every data set, and result tables."""
