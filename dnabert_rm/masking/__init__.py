"""RandomMask: the schedule of masking phases, the masked spans, and the collator."""
