"""Flags of `labels`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.genome.interval_flags import Anchor, IntervalFlags


@dataclass(frozen=True, kw_only=True)
class LabelsSettings(IntervalFlags, Settings):
    """Flags of `labels`: intervals, genome, windows, labels, negatives and splits."""

    GROUPS: ClassVar = {
        "feature": "lines of GFF and GTF files",
        "window": "windows",
        "label": "labels and negatives",
        "val_contigs": "splits",
    }

    files: tuple[str, ...] = setting((), positional=True, metavar="FILE")
    """BED, narrowPeak, GFF or GTF files, plain or gzip. NAME=FILE sets the class name of a file."""
    fasta: str = setting(metavar="GENOME.fa")
    """Genome of the intervals, plain or gzip."""
    out: Path = setting(metavar="DIR")
    """Output folder: train.csv, dev.csv, test.csv and labels.json."""
    overwrite: bool = False
    """Replace files that are already in --out."""
    seed: int = setting(0, metavar="N")
    """Seed for negatives and blocks."""

    feature: tuple[str, ...] = setting((), metavar="NAME")
    """Use only lines with these features (third column), such as gene."""
    attribute: tuple[str, ...] = setting((), metavar="KEY=VALUE")
    """Use only lines with these attributes, such as gene_biotype=protein_coding."""
    name_attribute: str | None = setting(None, metavar="KEY")
    """Attribute with the name (default: the first of Name, gene_name, gene, gene_id, ID)."""

    window: int = setting(metavar="N", minimum=1)
    """Bases per sequence."""
    anchor: Anchor = "centre"
    """Position that the window is placed by: the interval's centre, 5' end ("start") or 3' end ("end"), or the "summit"
    of a narrowPeak file. Intervals on the minus strand are read from right to left."""
    upstream: int | None = setting(None, metavar="N", minimum=0)
    """Bases of the window before the anchor (default: half of the window). A window of 300 with 249 before the start
    ends 50 bases behind it."""
    ignore_strand: bool = False
    """Read all windows from the forward strand."""
    unknown_bases: int = setting(0, metavar="N", minimum=0)
    """Drop windows with more letters other than A, C, G, T than this."""

    label: Literal["file", "name", "score", "overlap"] = "file"
    """Source of the label: the "file", the interval's "name" or "score" (for regression; a narrowPeak's signal), or
    "overlap": 1 if an interval of --overlap lies in the window, else 0."""
    overlap: str | None = setting(None, metavar="FILE")
    """Intervals for --label overlap. If both have a strand, it must be the same."""
    negatives: Literal["auto", "genome", "shuffled", "none"] = "auto"
    """Negatives: random windows of the "genome" that resemble the positives in G and C and in repeats; the positives
    "shuffled", with the same count of each pair of neighbours; or "none". "auto": genome for a single class."""
    negatives_per_positive: int = setting(1, metavar="N", minimum=1)
    """Number of negatives for each positive."""
    away_from: Literal["auto", "intervals", "windows"] = "auto"
    """What genome negatives keep away from: the "windows" of all intervals, or the "intervals" as well. "auto" means
    intervals for the anchors centre and summit, and windows for start and end."""
    distance: int | None = setting(None, metavar="N", minimum=0)
    """Least distance of genome negatives from them, in bases (default: the window's length)."""
    gc_tolerance: float = setting(0.02, metavar="F", above=0, maximum=1)
    """Largest difference in the share of G and C between a positive and its negatives."""
    repeat_tolerance: float = setting(0.1, metavar="F", above=0, maximum=1)
    """Largest difference in the share of lower-case (soft-masked) letters."""

    val_contigs: tuple[str, ...] = setting((), metavar="NAME")
    """Contigs for dev.csv (patterns with * ? [ ] too)."""
    test_contigs: tuple[str, ...] = setting((), metavar="NAME")
    """Contigs for test.csv."""
    val_fraction: float | None = setting(None, metavar="F", minimum=0, below=1)
    """Share of the windows for dev.csv, in whole blocks (default: 0.1). Not with --val-contigs."""
    test_fraction: float | None = setting(None, metavar="F", minimum=0, below=1)
    """Share of the windows for test.csv, in whole blocks (default: 0.2). Not with --test-contigs."""
    block_bases: int | None = setting(None, metavar="N", minimum=1)
    """Bases per block (default: 100,000). Windows across the border of two splits are dropped."""
    prepared: str | None = setting(None, metavar="DIR")
    """Prepared data of pretraining: what it holds out as val becomes dev.csv, and test becomes test.csv. Without
    --val-contigs, --test-contigs, --val-fraction and --test-fraction."""
    near_duplicates: Literal["drop", "keep"] = "drop"
    """Drop rows of dev.csv and test.csv that have half of their 30-mers in an earlier table, or only count them."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        if not self.files:
            yield "FILE: missing; pass at least one BED, narrowPeak, GFF or GTF file"
        yield from self.interval_problems()
        if (self.label == "overlap") != (self.overlap is not None):
            yield "--label overlap and --overlap FILE: pass both or neither"
        if self.negatives in ("genome", "shuffled") and self.label != "file":
            yield f"--negatives {self.negatives}: needs --label file; omit one of them"
        for split in ("val", "test"):
            if getattr(self, f"{split}_contigs") and getattr(self, f"{split}_fraction") is not None:
                yield f"--{split}-contigs and --{split}-fraction: pass only one of them"
            for flag in (f"{split}_contigs", f"{split}_fraction"):
                if self.prepared is not None and getattr(self, flag) not in ((), None):
                    yield f"--prepared and --{flag.replace('_', '-')}: pass only one of them"
        if self.block_bases is not None and not sum(self.fractions):
            yield f"--block-bases {self.block_bases}: no table is made of random blocks; omit it"
        if sum(self.fractions) >= 1:
            yield f"--test-fraction {self.fractions[1]}: the sum with --val-fraction must be below 1"

    @property
    def fractions(self) -> tuple[float, float]:
        """Shares of the windows for dev.csv and test.csv that random blocks take; 0 for other ways to split."""
        if self.prepared is not None:
            return 0.0, 0.0
        val = 0.0 if self.val_contigs else 0.1 if self.val_fraction is None else self.val_fraction
        test = 0.0 if self.test_contigs else 0.2 if self.test_fraction is None else self.test_fraction
        return val, test

    @property
    def avoids_intervals(self) -> bool:
        """Whether genome negatives keep away from whole intervals, not only from their windows."""
        return self.away_from == "intervals" or (self.away_from == "auto" and self.anchor in ("centre", "summit"))
