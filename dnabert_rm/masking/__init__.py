"""RandomMask: the schedule of phases, the spans, and the collator."""
