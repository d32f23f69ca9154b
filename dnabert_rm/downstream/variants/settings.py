"""What `score-variants` is told, checked when it is made; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dnabert_rm.downstream.finetuning.settings import PRECISIONS
from dnabert_rm.downstream.variants.sites import BAD_ROWS
from dnabert_rm.errors import ConfigError

STRANDS = ("both", "+", "-")


@dataclass(frozen=True)
class VariantSettings:
    """A masked language model, variants, the genome that they are of, and where the scores go."""

    model: Path
    """Folder of a pretrained model of overlapping k-mers."""
    vcf: str
    """VCF, gzip or not; "-" for standard input."""
    fasta: Path
    """The genome, FASTA, gzip or not."""
    output: Path
    """The table to write."""
    strand: str = "both"
    """Strands that are scored: both for their mean, + or -."""
    span: int | None = None
    """Tokens masked around a variant; None for those that cover it, k."""
    max_tokens: int | None = None
    """Tokens that the model sees at once, specials included; None for all of its positions."""
    bad_rows: str = "fail"
    """Rows that contradict the FASTA: fail at the first, or drop."""
    batch_size: int = 64
    """Windows in a batch."""
    precision: str = "fp32"
    """fp32, or bf16 for autocasting."""
    overwrite: bool = False
    """Replace an output that exists."""

    def __post_init__(self) -> None:
        for name in ("model", "fasta", "output"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        problems = [
            f"--{name.replace('_', '-')} {value}: must be {lowest} or more"
            for name, lowest in {"span": 1, "max_tokens": 3, "batch_size": 1}.items()
            if (value := getattr(self, name)) is not None and value < lowest
        ]
        for name, known in {"strand": STRANDS, "bad_rows": BAD_ROWS, "precision": PRECISIONS}.items():
            if getattr(self, name) not in known:
                problems.append(f"--{name.replace('_', '-')} {getattr(self, name)}: must be one of {', '.join(known)}")
        if problems:
            raise ConfigError("; ".join(problems))
