"""Parts of `export`: the weights put together, the checks, the model card."""
