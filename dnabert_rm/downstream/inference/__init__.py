"""Parts of `predict`, `embed` and `score-variants`: sequences in, windows, models that answer, files out."""
