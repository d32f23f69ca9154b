"""Settings, metrics and published scores of the 28 GUE data sets, and functions that find the data sets in a folder.

The fine-tuning settings are from Zhou et al.'s script for k-mer models, `finetune/scripts/run_dnabert1.sh` in the
DNABERT-2 repository. The script trains on four GPUs with 8 sequences each, so batches have 32 sequences. The published
scores are from:
Zhou et al., "DNABERT-2: Efficient Foundation Model and Benchmark for Multi-Species Genome", arXiv:2306.15006.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnabert_rm.utils.errors import ConfigError, DataError

# ---- the data sets of GUE


@dataclass(frozen=True)
class SetSettings:
    """Fine-tuning settings of one data set. The fields have the same names as in `FinetuneSettings`."""

    epochs: int = 3
    eval_steps: int = 200
    warmup_steps: int = 50
    max_steps: int | None = None
    """Number of optimizer steps; overrides `epochs`."""
    learning_rate: float = 3e-5
    batch_size: int = 32
    weight_decay: float = 0.01


@dataclass(frozen=True)
class GueSet:
    """Facts about one GUE data set, such as its task and sequence length."""

    name: str
    """Official folder name, e.g. `mouse/0`."""
    family: str
    """Task of the data set. The published table has one mean score per task."""
    num_classes: int
    num_bases: int
    """Sequence length in bases."""
    num_tokens: int
    """Maximum number of input tokens in the DNABERT-2 script. It fits overlapping k-mers for k from 3 to 6."""
    settings: SetSettings


_MARKS = ("H3", "H3K14ac", "H3K36me3", "H3K4me1", "H3K4me2", "H3K4me3", "H3K79me3", "H3K9ac", "H4", "H4ac")
_PROMOTER = SetSettings(epochs=4, eval_steps=400)
_TATA_PROMOTER = SetSettings(epochs=10)


def _all_sets() -> Iterator[GueSet]:
    for mark in _MARKS:
        yield GueSet(f"EMP/{mark}", "EMP", 2, 500, 512, SetSettings())
    for kind in range(5):
        yield GueSet(f"tf/{kind}", "TF human", 2, 100, 110, SetSettings(warmup_steps=30))
    for kind in range(5):
        yield GueSet(f"mouse/{kind}", "TF mouse", 2, 100, 110, SetSettings(epochs=5, warmup_steps=30, max_steps=1000))
    for family, stem, bases, tokens in (("promoter 300", "prom_300", 300, 310), ("core promoter", "prom_core", 70, 80)):
        yield GueSet(f"prom/{stem}_all", family, 2, bases, tokens, _PROMOTER)
        yield GueSet(f"prom/{stem}_notata", family, 2, bases, tokens, _PROMOTER)
        yield GueSet(f"prom/{stem}_tata", family, 2, bases, tokens, _TATA_PROMOTER)
    yield GueSet("splice/reconstructed", "splice", 3, 400, 410, SetSettings(epochs=5))
    yield GueSet("virus/covid", "Covid", 9, 1000, 1024, SetSettings(epochs=9))


GUE = {gue_set.name: gue_set for gue_set in _all_sets()}
"""Data sets by name, in the order of the published table."""
FAMILIES = tuple(dict.fromkeys(gue_set.family for gue_set in GUE.values()))

DEFAULT_METRIC = "mcc"
METRICS = {"Covid": "f1_macro"}
"""Metrics of the tasks that do not use `DEFAULT_METRIC`: task name to metric name in `scores.json`."""
METRIC_TITLES = {"mcc": "MCC", "f1_macro": "macro F1"}

PUBLISHED = {
    "DNABERT (3-mer)": (49.54, 64.43, 57.74, 84.63, 72.96, 84.14, 62.23),
    "DNABERT (6-mer)": (49.10, 64.17, 56.43, 81.70, 71.81, 84.07, 55.50),
    "NT-500M-human": (45.35, 57.14, 45.24, 85.51, 66.54, 79.71, 50.82),
    "NT-2500M-multi": (58.06, 63.33, 67.02, 88.15, 71.63, 89.35, 73.04),
    "DNABERT-2": (55.98, 70.11, 68.00, 84.21, 70.53, 84.99, 71.02),
}
"""Published mean score of each task, in the order of `FAMILIES`: MCC × 100, or macro F1 × 100 for Covid."""
PUBLISHED_SOURCE = "Zhou et al. 2023, arXiv:2306.15006"


def family_of(name: str) -> str | None:
    """Return the task of a data set, e.g. "TF mouse", or None if GUE does not have the data set."""
    return GUE[name].family if name in GUE else None


def metric_of(name: str) -> str:
    """Return the key of a data set's metric in `scores.json`."""
    return METRICS.get(family_of(name) or "", DEFAULT_METRIC)


def set_settings(name: str) -> SetSettings:
    """Return the GUE settings of a data set, or default settings if GUE does not have the data set."""
    return GUE[name].settings if name in GUE else SetSettings()


# ---- the data sets of a folder

SPLITS = ("train", "dev", "test")
STAND_IN = "dev → test stand-in"
"""Label of scores after training on dev.csv with `--stand-in`, because train.csv is missing.

Such scores are not GUE scores.
"""


@dataclass(frozen=True)
class DataSet:
    """A data set folder, which contains at least one of train.csv, dev.csv and test.csv."""

    name: str
    """Official name of a GUE data set, e.g. `mouse/0`. For other data sets, the path below the searched folder."""
    folder: Path
    splits: tuple[str, ...]
    """Splits whose CSV files exist."""

    @property
    def known(self) -> bool:
        """Whether the data set is in GUE."""
        return self.name in GUE

    @property
    def missing(self) -> list[str]:
        """Names of the missing CSV files, e.g. "train.csv"."""
        return [f"{split}.csv" for split in SPLITS if split not in self.splits]

    @property
    def may_stand_in(self) -> bool:
        """Whether train.csv is the only missing file, so that dev.csv can replace train.csv for training."""
        return self.missing == ["train.csv"]

    def file(self, split: str) -> Path:
        """Return the path of a split's CSV file."""
        return self.folder / f"{split}.csv"


def find_sets(root: Path) -> list[DataSet]:
    """Return the data sets in `root` and its subfolders.

    GUE data sets come first, in published order. Other data sets follow, sorted by name. `root` may be a single data
    set, or any folder above data sets. Raise `DataError` if `root` contains no data set, or two data sets with the
    same name.
    """
    if not root.is_dir():
        raise DataError(f"--data {root}: no such folder; pass the folder that contains <family>/<name>/train.csv")
    found: dict[str, DataSet] = {}
    for folder, splits in _folders(root):
        name = _name(root, folder)
        if name in found:
            raise DataError(
                f"--data {root}: {found[name].folder} and {folder} are both {name}; "
                f"pass a folder with only one data set {name}"
            )
        found[name] = DataSet(name, folder, splits)
    if not found:
        raise DataError(
            f"--data {root}: no train.csv, dev.csv or test.csv in this folder or its subfolders; check the path"
        )
    order = {name: index for index, name in enumerate(GUE)}
    return sorted(found.values(), key=lambda data_set: (order.get(data_set.name, len(order)), data_set.name))


def _folders(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield each folder that contains train.csv, dev.csv or test.csv, with the names of the splits found."""
    seen = set()
    for folder, names, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder already visited
            names.clear()
            continue
        seen.add(real)
        # Visit links last, so that a linked folder is found under its real path.
        names[:] = sorted((name for name in names if name[0] != "."), key=lambda name: (_is_link(folder, name), name))
        splits = tuple(split for split in SPLITS if f"{split}.csv" in files)
        if splits:
            yield Path(folder), splits


def _is_link(folder: str, name: str) -> bool:
    return Path(folder, name).is_symlink()


def _name(root: Path, folder: Path) -> str:
    """Return the official name of a GUE data set, e.g. `mouse/0`, or another data set's path relative to `root`."""
    official = "/".join(folder.absolute().parts[-2:])
    if official in GUE:
        return official
    return folder.relative_to(root).as_posix() if folder != root else folder.absolute().name


def choose_sets(found: Sequence[DataSet], patterns: Sequence[str]) -> list[DataSet]:
    """Return the data sets that match at least one pattern, or all data sets if there are no patterns.

    A pattern is a data set's name or a folder of data sets, and may contain `*` and `?`. Raise `ConfigError` if a
    pattern matches no data set.
    """
    if not patterns:
        return list(found)
    matches = {
        pattern: [s for s in found if any(fnmatch.fnmatchcase(s.name, p) for p in (pattern, f"{pattern}/*"))]
        for pattern in patterns
    }
    if unmatched := [pattern for pattern, sets in matches.items() if not sets]:
        names = ", ".join(data_set.name for data_set in found)
        raise ConfigError(f"--sets {','.join(unmatched)}: no such data set in --data; choose from {names}")
    chosen = {data_set.name for sets in matches.values() for data_set in sets}
    return [data_set for data_set in found if data_set.name in chosen]


def why_not(data_set: DataSet, stand_in: bool) -> str | None:
    """Return the reason why fine-tuning on a data set is impossible, or None if fine-tuning is possible.

    The reason names the missing CSV files. If `stand_in` is true, dev.csv may replace a missing train.csv.
    """
    if not data_set.missing or (stand_in and data_set.may_stand_in):
        return None
    hint = "; pass --stand-in to train on dev.csv and test on test.csv" if data_set.may_stand_in else ""
    return f"{' and '.join(data_set.missing)} missing{hint}"
