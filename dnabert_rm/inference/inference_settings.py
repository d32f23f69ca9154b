"""Settings of `predict`, `embed` and `score-variants`, checked when constructed. This module imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.finetune.finetune_settings import Precision

EMBEDDING_ENDINGS = (".npy", ".csv", ".parquet")


@dataclass(frozen=True)
class InferenceSettings(Settings):
    """Settings shared by `predict` and `embed`: model, sequences, output file, and how to split sequences."""

    GROUPS: ClassVar = {"model": "files", "long": "long sequences", "batch_size": "speed", "pooling": "embeddings"}

    model: Path = setting(metavar="DIR")
    """Model folder with config.json, safetensors, and vocab.txt or tokenizer.json."""
    input: str = setting(metavar="FILE")
    """FASTA, or a CSV or TSV table with the column sequence; may be gzipped. - reads standard input."""
    output: Path = setting(metavar="FILE")
    """File to write: a CSV table. For embeddings also .npy (row names in NAME.ids.csv) or .parquet."""
    overwrite: bool = False
    """Replace an existing output file."""
    id_column: str | None = setting(None, metavar="NAME")
    """Column with the names of a table's rows; by default id, or row numbers if there is no such column."""
    long: Literal["window", "middle"] | None = None
    """For sequences longer than the model's input: join overlapping windows, or use only the middle. By default as in
    fine-tuning; for embeddings, window."""
    tile: int | None = setting(None, metavar="BASES", minimum=1)
    """Bases per tile: each tile gets its own result. By default one result per record."""
    step: int | None = setting(None, metavar="BASES", minimum=1)
    """Bases from one tile's start to the next; by default --tile, so that tiles do not overlap."""
    max_tokens: int | None = setting(None, metavar="N", minimum=3)
    """Tokens per window, special tokens included; by default the model's limit."""
    batch_size: int = setting(64, metavar="N", minimum=1)
    """Windows per batch."""
    precision: Precision = "fp32"
    """fp32, or bf16 to run under autocast."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        if self.step is not None and self.tile is None:
            yield f"--step {self.step}: is the distance between tiles; pass --tile as well"


@dataclass(frozen=True)
class PredictSettings(InferenceSettings):
    """Settings of `predict`."""


@dataclass(frozen=True)
class EmbeddingSettings(InferenceSettings):
    """Settings of `embed`, which turns hidden states into embeddings."""

    pooling: Literal["mean", "cls", "max"] = "mean"
    """Pooling over the tokens of a sequence: mean, max, or cls (the state of [CLS])."""
    per_token: bool = False
    """Write one embedding per token (.npy) instead of one per sequence."""
    layer: int | None = setting(None, metavar="N")
    """Hidden state to use: 0 is the first layer's input, N the output of layer N; negative numbers count from the end.
    By default the encoder's output."""
    both_strands: bool = False
    """Average the embeddings of the sequence and of its reverse complement."""
    overlapping: bool = setting(True, off="--non-overlapping")
    """Take tokens with stride k instead of 1."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        yield from super().problems()
        if self.output.suffix not in EMBEDDING_ENDINGS:
            yield f"--output {self.output}: must end in {', '.join(EMBEDDING_ENDINGS)}"
        elif self.per_token and self.output.suffix != ".npy":
            yield f"--output {self.output}: --per-token writes only .npy; choose a .npy file"
        if self.per_token and self.pooling != "mean":
            yield f"--pooling {self.pooling}: has no effect with --per-token; pass only one of them"


@dataclass(frozen=True)
class VariantSettings(Settings):
    """Settings of `score-variants`: a masked language model, variants, the genome and the output table."""

    GROUPS: ClassVar = {"model": "files", "strand": "scoring"}

    model: Path = setting(metavar="HFDIR")
    """Folder of a model pretrained on overlapping k-mers."""
    vcf: str = setting(metavar="FILE")
    """VCF file, may be gzipped; - reads standard input."""
    fasta: Path = setting(metavar="FILE")
    """The genome as FASTA, may be gzipped."""
    output: Path = setting(metavar="FILE")
    """Table of scores to write (CSV)."""
    overwrite: bool = False
    """Replace an existing output file."""
    bad_rows: Literal["fail", "drop"] = "fail"
    """Rows whose REF or position contradicts the FASTA: stop at the first (fail), or leave them out (drop)."""
    strand: Literal["both", "+", "-"] = "both"
    """Strand to score: +, -, or both for their mean."""
    span: int | None = setting(None, metavar="N", minimum=1)
    """Tokens masked around a variant; by default the k tokens that cover it."""
    max_tokens: int | None = setting(None, metavar="N", minimum=3)
    """Tokens per window, special tokens included; by default all positions of the model."""
    batch_size: int = setting(64, metavar="N", minimum=1)
    """Windows per batch."""
    precision: Precision = "fp32"
    """fp32, or bf16 to run under autocast."""
