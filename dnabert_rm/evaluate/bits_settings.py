"""Settings of `dnabert-rm evaluate bits`. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.finetune.finetune_settings import Precision


@dataclass(frozen=True)
class BitsSettings(Settings):
    """Settings of `evaluate bits`: models, held-out data, what is hidden, and how results are divided."""

    GROUPS: ClassVar = {"model": "files", "split": "what is measured", "window": "speed and context"}

    model: tuple[Path, ...] = setting(metavar="HFDIR")
    """Folders of masked language models over k-mers: exports, or stock models with DNABERT's vocabulary."""
    data: tuple[str, ...] = setting(metavar="DIR")
    """Prepared folders or their URLs, with held-out DNA. Their training split gives the baselines."""
    output: Path | None = setting(None, metavar="FILE")
    """File to write: a JSON object with all results. By default only the table is printed."""
    overwrite: bool = False
    """Replace an existing output file."""
    split: str = "val"
    """The split to measure on."""
    train_split: str = "train"
    """The split to compute the baselines from: base frequencies and Markov chains."""
    regions: int = setting(16, metavar="N", minimum=1)
    """Number of held-out regions of up to 4,096 bases, the same ones as in pretraining."""
    hidden: tuple[int, ...] = setting((1, 3, 5, 9), separator=",", metavar="N,N", minimum=1, maximum=9)
    """Lengths in bases of the hidden stretches."""
    orders: tuple[int, ...] = setting((2, 5, 8, 11), separator=",", metavar="N,N", minimum=1, maximum=11)
    """Orders of the Markov chains. Those with more than four contexts per training base are left out."""
    by: tuple[Literal["strand", "repeats", "genome"], ...] = setting((), separator=",", metavar="WHAT,WHAT")
    """Also list results by "strand", by soft-masked "repeats" (recorded with --record-soft-mask), or by "genome"."""
    window: int | None = setting(None, metavar="N", minimum=3)
    """Tokens per window, [CLS] and [SEP] included; by default as in pretraining, or all positions of the model."""
    non_overlapping: bool = False
    """Use tokens with stride k; by default the stride of pretraining."""
    batch_size: int = setting(32, metavar="N", minimum=1)
    """Windows per batch."""
    precision: Precision = "fp32"
    """fp32, or bf16 to run under autocast."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        if self.split == self.train_split:
            yield f"--split {self.split}: is also --train-split, so the lines would be fitted on the held-out DNA"
