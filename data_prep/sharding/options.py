"""Options of `build` that change the shards' bytes. Creating invalid options raises `ConfigError`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.utils.errors import ConfigError

_BED_NAME = re.compile(r"\.(bed\d*|narrowPeak|broadPeak)(\.b?gz)?$", re.IGNORECASE)


def is_bed_name(word: str) -> bool:
    """Return whether a word has the suffix of a BED file. The file need not exist."""
    return _BED_NAME.search(word) is not None


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(Settings):
    """Options for segments, contigs and splits. Base class of `BuildOptions` and of the flags of `build`."""

    segment_tokens: int = setting(1 << 16, metavar="N", minimum=1)
    """Largest length of a segment."""
    min_tokens: int = setting(1, metavar="N", minimum=1)
    """Shortest run of A, C, G, T to keep."""
    shard_tokens: int = setting(1 << 25, metavar="N", minimum=1)
    """Largest size of a shard. Each shard is written by one worker."""
    rna: bool = False
    """Read U as T."""
    record_soft_mask: bool = False
    """Store the lower-case (soft-masked) ranges of each segment."""
    strand: Literal["forward", "both"] = "forward"
    """For BPE only: "both" also stores reverse complements, which can't be made from BPE ids at load time."""
    include: tuple[str, ...] = setting((), metavar="NAME")
    """Use only these contigs."""
    exclude: tuple[str, ...] = setting((), metavar="NAME")
    """Leave out these contigs, or the bases in these BED files (names that end in .bed, .bed.gz, .narrowPeak)."""
    val_contigs: tuple[str, ...] = setting((), metavar="NAME")
    """Contigs for validation."""
    test_contigs: tuple[str, ...] = setting((), metavar="NAME")
    """Contigs for testing."""
    val_fraction: float = setting(0.0, metavar="F", minimum=0, below=1)
    """Fraction of the bases for validation, in whole blocks."""
    test_fraction: float = setting(0.0, metavar="F", minimum=0, below=1)
    """Fraction of the bases for testing, in whole blocks."""
    block_bases: int = setting(100_000, metavar="N", minimum=1)
    """Bases per block. A split by fraction takes whole blocks."""
    seed: int = setting(0, metavar="N")
    """Seed for choosing blocks."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        if self.min_tokens > max(1, self.segment_tokens // 2):
            yield f"--min-tokens {self.min_tokens}: must be at most half of --segment-tokens"
        if self.shard_tokens < self.strands * self.segment_tokens:
            yield (
                f"--shard-tokens {self.shard_tokens}: must be at least --segment-tokens, "
                "or twice --segment-tokens with --strand both"
            )
        if self.val_fraction + self.test_fraction >= 1:
            yield f"--test-fraction {self.test_fraction}: the sum with --val-fraction must be below 1"
        if (self.val_contigs or self.test_contigs) and (self.val_fraction or self.test_fraction):
            yield "--val-contigs/--test-contigs and --val-fraction/--test-fraction: can't be combined; pass one kind"

    @property
    def strands(self) -> int:
        """Number of strands stored per segment: 1 or 2."""
        return 2 if self.strand == "both" else 1


@dataclass(frozen=True)
class RegionFile:
    """A BED file of a build: its name without folder, and its SHA-256."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BuildOptions(SegmentOptions):
    """All options that change the shards' bytes."""

    k: int | None = 6
    """Bases per token, or None for BPE."""
    unk_bases: int = setting(0, minimum=0)
    """Runs of at most this many ambiguous letters stay inside a segment as `[UNK]`. Longer runs split the segment."""
    bpe_sha256: str | None = None
    """Checksum of the BPE model, or None for k-mers."""
    regions: tuple[RegionFile, ...] = ()
    """BED files of --regions."""
    exclude_regions: tuple[RegionFile, ...] = ()
    """BED files of --exclude."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        if self.k is not None:
            from dnabert_rm.genome.kmer import check_k  # imports numpy, which `--help` need not wait for

            try:
                check_k(self.k)
            except ConfigError as error:
                yield str(error)
        yield from super().problems()
        if self.strand == "both" and self.k is not None:
            yield "--strand both: applies to BPE only; omit it, because k-mers are reverse-complemented at load time"
        if self.k is None and self.unk_bases:
            yield "--ambiguous unk: applies to k-mers only; omit it with a BPE model"

    @property
    def unit_bases(self) -> int:
        """Bases per token for computing segment lengths: k, or 1 for BPE.

        BPE tokens are not known before encoding, so the lengths of BPE segments are counted in bases.
        """
        return self.k or 1

    def to_json(self) -> dict[str, Any]:
        """Return the options as the manifest stores them. Without BED files, the manifest has no entry for them."""
        content = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        for name in ("regions", "exclude_regions"):
            content[name] = [asdict(file) for file in content[name]]
            if not content[name]:
                del content[name]
        return content
