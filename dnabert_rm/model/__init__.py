"""Masked language models: transformers' architectures, with the head and the loss on masked positions only."""
