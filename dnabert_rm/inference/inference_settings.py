"""What `predict` and `embed` are told, checked when it is made; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dnabert_rm.finetune.finetune_settings import PRECISIONS
from dnabert_rm.genome.vcf import BAD_ROWS
from dnabert_rm.inference.sequence_input import LONG
from dnabert_rm.utils.errors import ConfigError

POOLINGS = ("mean", "cls", "max")
EMBEDDING_ENDINGS = (".npy", ".csv", ".parquet")


@dataclass(frozen=True)
class InferenceSettings:
    """A model, sequences, and where the answers go."""

    model: Path
    """Folder of the model: config.json, safetensors, vocab.txt."""
    input: str
    """FASTA, or CSV or TSV with the column sequence, gzip or not; "-" for standard input."""
    output: Path
    """The file to write."""
    id_column: str | None = None
    """Column that names a table's rows; None for "id", or the row's number where there is no such column."""
    long: str | None = None
    """What is done with sequences beyond the model's tokens: window or middle; None for the model's own way."""
    tile: int | None = None
    """One answer for each stretch of so many bases; None for one a record."""
    step: int | None = None
    """Bases from one tile's start to the next; None for tiles side by side."""
    max_tokens: int | None = None
    """Tokens that the model sees at once, specials included; None for the model's own number."""
    batch_size: int = 64
    """Windows in a batch."""
    precision: str = "fp32"
    """fp32, or bf16 for autocasting."""
    overwrite: bool = False
    """Replace an output that exists."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", Path(self.model))
        object.__setattr__(self, "output", Path(self.output))
        if problems := self._problems():
            raise ConfigError("; ".join(problems))

    def _problems(self) -> list[str]:
        at_least = {"tile": 1, "step": 1, "max_tokens": 3, "batch_size": 1}
        problems = [
            f"--{name.replace('_', '-')} {value}: must be {lowest} or more"
            for name, lowest in at_least.items()
            if (value := getattr(self, name)) is not None and value < lowest
        ]
        if self.step is not None and self.tile is None:
            problems.append(f"--step {self.step}: is the distance of tiles; pass --tile too")
        if self.long not in (None, *LONG):
            problems.append(f"--long {self.long}: must be one of {', '.join(LONG)}")
        if self.precision not in PRECISIONS:
            problems.append(f"--precision {self.precision}: must be one of {', '.join(PRECISIONS)}")
        return problems


@dataclass(frozen=True)
class EmbeddingSettings(InferenceSettings):
    """How the hidden states of a model become embeddings."""

    pooling: str = "mean"
    """Over the tokens of a sequence: mean, cls (the first special token's state) or max."""
    per_token: bool = False
    """One embedding for each token in place of one a sequence."""
    layer: int | None = None
    """0 for the embeddings that enter the first layer, 1 … for what each layer gives, negative from the end; None for
    what the encoder returns."""
    both_strands: bool = False
    """The mean of the sequence's and its reverse complement's."""
    overlapping: bool = True
    """Tokens with stride 1, or with stride k where False."""

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.pooling not in POOLINGS:
            problems.append(f"--pooling {self.pooling}: must be one of {', '.join(POOLINGS)}")
        if self.output.suffix not in EMBEDDING_ENDINGS:
            problems.append(f"--output {self.output}: must end in {', '.join(EMBEDDING_ENDINGS)}")
        elif self.per_token and self.output.suffix != ".npy":
            problems.append(f"--output {self.output}: embeddings of tokens go to .npy alone")
        if self.per_token and self.pooling != "mean":
            problems.append(f"--pooling {self.pooling}: has no meaning with --per-token; leave one of them out")
        return problems


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
