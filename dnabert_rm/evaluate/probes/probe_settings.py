"""Settings of `dnabert-rm evaluate probe`. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.evaluate.suite import DEFAULT_SUITE
from dnabert_rm.evaluate.suite_settings import parse_set_names
from dnabert_rm.finetune.finetune_settings import Precision


def _baseline_names(text: str) -> tuple[str, ...]:
    """Parse the comma-separated names of `--baselines`. The word "none" gives an empty tuple."""
    names = tuple(word.strip() for word in text.split(",") if word.strip())
    return () if names == ("none",) else names


def _layers(text: str) -> tuple[int, ...]:
    """Parse the comma-separated numbers of `--layers`. The word "all" gives an empty tuple."""
    try:
        return () if text.strip() == "all" else tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise ValueError("must be all, or numbers like 0,2") from None


@dataclass(frozen=True)
class ProbeSettings(Settings):
    """Settings of `evaluate probe`: models, data sets, what is chosen on dev, labels per class and baselines."""

    GROUPS: ClassVar = {
        "model": "files",
        "sets": "what is measured",
        "labels_per_class": "few labels",
        "overlapping": "speed and tokens",
    }

    model: tuple[Path, ...] = setting(metavar="HFDIR")
    """Folders of exported or fine-tuned models. Their weights stay frozen."""
    data: Path = setting(metavar="FOLDER")
    """Folder with <family>/<name>/{train,dev,test}.csv."""
    output: Path = setting(metavar="DIR")
    """Folder for probe.csv, probe.md, probe.json, probe.png and cache/."""
    suite: str = setting(DEFAULT_SUITE, metavar="NAME|FILE")
    """Benchmark that names the metrics: gue, genomic_benchmarks, nucleotide_transformer, or the path of a TOML file."""
    overwrite: bool = False
    """Replace earlier results in --output. The cached embeddings are used again in any case."""
    sets: tuple[str, ...] = setting((), separator=",", metavar="NAMES", parse=parse_set_names)
    """Data sets to measure, such as mouse/0,tf or 'EMP/H3*'. By default, all in the folder."""
    stand_in: bool = False
    """If only train.csv is missing, train on dev.csv and test on test.csv. The result is not a score of the suite."""
    task: Literal["classes", "regression"] | None = None
    """Logistic regression on classes, or ridge regression on numbers. By default the suite's task of each data set;
    classes for data sets that the suite does not have."""
    layers: tuple[int, ...] = setting((), separator=",", metavar="all|N,N", parse=_layers)
    """Hidden states to try, by default all: 0 is the first layer's input, N the output of layer N."""
    pooling: tuple[Literal["mean", "cls"], ...] = setting(("mean",), separator=",", metavar="NAMES")
    """Embeddings to try: the mean over the tokens, cls (the state of [CLS]), or both."""
    baselines: tuple[Literal["kmers", "cnn"], ...] = setting(
        ("kmers",), separator=",", metavar="NAMES", parse=_baseline_names
    )
    """Baselines without a pretrained model: kmers (counts), cnn (trained from scratch), both, or none."""
    labels_per_class: tuple[int, ...] = setting((0,), separator=",", metavar="N,N", minimum=0)
    """Training rows to draw from each class; 0 takes all. A list gives one table row per number."""
    seeds: tuple[int, ...] = setting((1, 2, 3), separator=",", metavar="N,N", minimum=0)
    """Random seeds. Each one draws rows, holds out rows if there is no dev.csv, and starts the CNN."""
    overlapping: bool = setting(True, off="--non-overlapping")
    """Take tokens with stride k instead of 1."""
    batch_size: int = setting(64, metavar="N", minimum=1)
    """Windows per batch."""
    precision: Precision = "fp32"
    """fp32, or bf16 to run under autocast."""
    cnn_epochs: int = setting(15, metavar="N", minimum=1)
    """Maximum number of passes over the training rows for the CNN."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        for name in ("model", "seeds", "pooling", "labels_per_class"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                flag = f"--{name.replace('_', '-')}"
                yield f"{flag} {','.join(map(str, values))}: pass at least one value, and no value twice"
        if len(set(self.baselines)) < len(self.baselines):
            yield f"--baselines {','.join(self.baselines)}: pass no value twice"
        if self.task == "regression" and any(self.labels_per_class):
            yield "--labels-per-class: needs classes; omit it with --task regression"
