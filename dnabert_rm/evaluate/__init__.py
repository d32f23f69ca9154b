"""The GUE benchmark: fine-tuning runs on its data sets, and tables of their scores."""
