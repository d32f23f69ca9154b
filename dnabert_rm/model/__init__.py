"""Masked language models: transformers' architectures, with a head on masked positions only and an exact loss."""
