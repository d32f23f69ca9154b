"""Parts of `score-variants`: the genome, the variants and the sequence around them."""
