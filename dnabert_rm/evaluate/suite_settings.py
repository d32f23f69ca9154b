"""Settings of `gue` and `evaluate suite`: suite, model, data sets, seeds, and overrides of the suite's settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.evaluate.suite import DEFAULT_SUITE
from dnabert_rm.finetune.finetune_settings import Precision

WEIGHTS = ("pretrained", "scratch")
OVERRIDES = (
    "epochs",
    "max_steps",
    "learning_rate",
    "batch_size",
    "warmup_steps",
    "weight_decay",
    "dropout",
    "eval_steps",
    "max_tokens",
    "precision",
)
"""Fields of `FinetuneSettings` that can be overridden for all data sets."""


def parse_set_names(text: str) -> tuple[str, ...]:
    """Parse the comma-separated patterns of `--sets`. Remove trailing slashes, which shell completion adds."""
    return tuple(word.strip().rstrip("/") for word in text.split(",") if word.strip())


@dataclass(frozen=True)
class SuiteSettings(Settings):
    """Settings of one call of `gue` or `evaluate suite`, such as model, data sets, seeds and initial weights."""

    GROUPS: ClassVar = {
        "model": "files",
        "sets": "what to run",
        "epochs": "overrides of the suite's settings, for all data sets",
    }

    model: Path = setting(metavar="HFDIR")
    """Folder of an exported model."""
    data: Path = setting(metavar="FOLDER")
    """Folder with <family>/<name>/{train,dev,test}.csv."""
    output: Path = setting(metavar="DIR")
    """Folder for table.csv, table.md, table.png, scores.json and runs/."""
    suite: str = setting(DEFAULT_SUITE, metavar="NAME|FILE")
    """Benchmark with metrics, settings and published scores: gue, genomic_benchmarks, nucleotide_transformer, or the
    path of a TOML file."""
    keep_models: bool = False
    """Keep the fine-tuned model of each run. By default it is deleted after scoring."""
    overwrite: bool = False
    """Repeat finished runs and replace their results."""
    sets: tuple[str, ...] = setting((), separator=",", metavar="NAMES", parse=parse_set_names)
    """Data sets to run, such as mouse/0,tf or 'EMP/H3*'. By default, all in the folder."""
    seeds: tuple[int, ...] = setting((42,), separator=",", metavar="N,N")
    """Random seeds. There is one run per seed."""
    arms: tuple[Literal["pretrained", "scratch"], ...] = setting(("pretrained",), separator=",", metavar="NAMES")
    """Initial weights to compare: pretrained, scratch (random weights) or both."""
    overlapping: bool = setting(True, off="--non-overlapping")
    """Use non-overlapping k-mers (stride k). Their scores get separate columns in the table."""
    stand_in: bool = False
    """If only train.csv is missing, train on dev.csv and test on test.csv. The result is not a score of the suite."""
    jobs: int | None = setting(None, metavar="N", minimum=1)
    """Number of parallel runs. By default one per visible GPU, or 1 without GPUs."""
    dry_run: bool = False
    """List the runs and their settings without starting them."""
    epochs: int | None = setting(None, metavar="N")
    """Passes over the training rows. If set, the suite's own number of steps is ignored."""
    max_steps: int | None = setting(None, metavar="N")
    """Number of optimizer steps; overrides --epochs."""
    learning_rate: float | None = setting(None, metavar="N")
    """Peak learning rate, with linear warm-up and decay."""
    batch_size: int | None = setting(None, metavar="N")
    """Rows per optimizer step."""
    warmup_steps: int | None = setting(None, metavar="N")
    """Number of learning-rate warm-up steps."""
    weight_decay: float | None = setting(None, metavar="N")
    """Weight decay of AdamW."""
    dropout: float | None = setting(None, metavar="N")
    """Dropout probability of hidden states and attention."""
    eval_steps: int | None = setting(None, metavar="N")
    """Number of steps between evaluations on dev.csv."""
    max_tokens: int | None = setting(None, metavar="N")
    """Maximum tokens per sequence. Longer sequences are cut to their middle."""
    precision: Precision | None = None
    """fp32, or bf16 for mixed precision."""

    def problems(self) -> Iterator[str]:
        """Yield an error message if `seeds` is empty or has duplicates. Check `arms` in the same way."""
        for name in ("seeds", "arms"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                yield f"--{name} {','.join(map(str, values))}: pass at least one value, and no value twice"

    @property
    def overrides(self) -> dict[str, Any]:
        """Settings that override the suite's settings for all data sets, keyed by field of `FinetuneSettings`."""
        return {name: value for name in OVERRIDES if (value := getattr(self, name)) is not None}
