"""RandomMask: the schedule of phases, the spans, the collate step."""
