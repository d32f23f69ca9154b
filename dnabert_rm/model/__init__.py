"""transformers' architectures, sized by the configuration, with a masked-only head and an exact loss."""
