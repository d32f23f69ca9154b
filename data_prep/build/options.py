"""The options of a build: one frozen dataclass, checked where it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.genome.kmer import check_k


@dataclass(frozen=True)
class BuildOptions:
    """Everything that changes the shards' bytes, apart from the input files."""

    k: int | None = 6
    """Bases of a token; None for BPE."""
    segment_tokens: int = 1 << 16
    """A segment holds at most this many tokens (BPE: bases)."""
    min_tokens: int = 1
    """Runs with fewer tokens (BPE: bases) are left out."""
    shard_tokens: int = 1 << 25
    """A shard holds at most this many tokens (BPE: bases)."""
    unk_bases: int = 0
    """Ambiguous stretches of at most this many bases stay inside a segment as `[UNK]`; 0 splits at all."""
    rna: bool = False
    """Read U as T."""
    record_soft_mask: bool = False
    """Store each segment's lower-case stretches beside it."""
    include: tuple[str, ...] = ()
    """Names or patterns of the contigs to take; none: all."""
    exclude: tuple[str, ...] = ()
    """Names or patterns of the contigs to leave out."""
    val_contigs: tuple[str, ...] = ()
    """Names or patterns of the contigs for validation."""
    test_contigs: tuple[str, ...] = ()
    """Names or patterns of the contigs for testing."""
    val_fraction: float = 0.0
    """Part of the bases for validation, in whole blocks."""
    test_fraction: float = 0.0
    """Part of the bases for testing, in whole blocks."""
    block_bases: int = 100_000
    """Splits by fraction take whole blocks of about this many bases."""
    seed: int = 0
    """Of the draw of blocks."""
    strand: str = "forward"
    """BPE only: "both" stores every segment's reverse complement too."""
    bpe_sha256: str | None = None
    """Checksum of the BPE model, None for k-mers."""

    def __post_init__(self) -> None:
        if self.k is not None:
            check_k(self.k)
        for name in ("segment_tokens", "min_tokens", "shard_tokens", "block_bases"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "must be at least 1")
        _check("min_tokens", self.min_tokens, self.min_tokens <= max(1, self.segment_tokens // 2),
               "must be at most half of --segment-tokens")  # fmt: skip
        _check("shard_tokens", self.shard_tokens, self.shard_tokens >= self.strands * self.segment_tokens,
               "must be at least --segment-tokens, and twice that with --strand both")  # fmt: skip
        _check("unk_bases", self.unk_bases, self.unk_bases >= 0, "must not be negative")
        for name in ("val_fraction", "test_fraction"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "must be at least 0 and below 1")
        _check("test_fraction", self.test_fraction, self.val_fraction + self.test_fraction < 1,
               "and --val-fraction together must stay below 1")  # fmt: skip
        if (self.val_contigs or self.test_contigs) and (self.val_fraction or self.test_fraction):
            raise ConfigError("--val-contigs/--test-contigs and --val-fraction/--test-fraction: choose one of the two")
        if self.strand == "both" and self.k is not None:
            raise ConfigError("--strand both: is for BPE only; k-mer ids give the reverse strand at load time")
        if self.k is None and self.unk_bases:
            raise ConfigError("--ambiguous unk: is for k-mers only; leave it out with a BPE model")

    @property
    def unit_bases(self) -> int:
        """Bases that a unit of length covers: k, or 1 for BPE, whose tokens are not known beforehand."""
        return self.k or 1

    @property
    def strands(self) -> int:
        """How many times a segment is stored."""
        return 2 if self.strand == "both" else 1

    def to_json(self) -> dict[str, Any]:
        """The options as they stand in the manifest."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def _check(name: str, value: object, good: bool, rule: str) -> None:
    if not good:
        raise ConfigError(f"--{name.replace('_', '-')} {value}: {rule}")
