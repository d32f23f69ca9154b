"""The 28 data sets of GUE with settings, metrics and published scores, and a search for data sets in a folder.

Fine-tuning settings: Zhou et al.'s for k-mer models (DNABERT-2's repository, `finetune/scripts/run_dnabert1.sh`, with
a batch of four GPUs × 8 rows). Published scores: Zhou et al., "DNABERT-2: Efficient Foundation Model and Benchmark for
Multi-Species Genome", arXiv:2306.15006.
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
    """Fine-tuning settings of a data set; the names are fields of `FinetuneSettings`."""

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
    """One data set of GUE."""

    name: str
    """Official folder, e.g. `mouse/0`."""
    family: str
    """Task of the data set. The published table has the mean of each task."""
    num_classes: int
    num_bases: int
    """Length of the sequences."""
    num_tokens: int
    """Maximum input length in the scripts, special tokens included. It fits overlapping k-mers with k from 3 to 6."""
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
"""Metric of each family that does not use `DEFAULT_METRIC`, by its name in `scores.json`."""
METRIC_TITLES = {"mcc": "MCC", "f1_macro": "macro F1"}

PUBLISHED = {
    "DNABERT (3-mer)": (49.54, 64.43, 57.74, 84.63, 72.96, 84.14, 62.23),
    "DNABERT (6-mer)": (49.10, 64.17, 56.43, 81.70, 71.81, 84.07, 55.50),
    "NT-500M-human": (45.35, 57.14, 45.24, 85.51, 66.54, 79.71, 50.82),
    "NT-2500M-multi": (58.06, 63.33, 67.02, 88.15, 71.63, 89.35, 73.04),
    "DNABERT-2": (55.98, 70.11, 68.00, 84.21, 70.53, 84.99, 71.02),
}
"""Mean score of each family, in the order of `FAMILIES`: MCC × 100, or macro F1 × 100 for Covid."""
PUBLISHED_SOURCE = "Zhou et al. 2023, arXiv:2306.15006"


def family_of(name: str) -> str | None:
    """Return the family of a data set, or None if it is not in GUE."""
    return GUE[name].family if name in GUE else None


def metric_of(name: str) -> str:
    """Return the metric of a data set, by its name in `scores.json`."""
    return METRICS.get(family_of(name) or "", DEFAULT_METRIC)


def set_settings(name: str) -> SetSettings:
    """Return the settings of a data set, or the defaults if it is not in GUE."""
    return GUE[name].settings if name in GUE else SetSettings()


# ---- the data sets of a folder

SPLITS = ("train", "dev", "test")
STAND_IN = "dev → test stand-in"
"""Label of a data set that is trained on dev.csv because it has no train.csv (`--stand-in`); not a GUE score."""


@dataclass(frozen=True)
class DataSet:
    """A folder with at least one of train.csv, dev.csv, test.csv."""

    name: str
    """`family/name` as in GUE, otherwise the path relative to the searched folder."""
    folder: Path
    splits: tuple[str, ...]
    """Splits whose tables exist."""

    @property
    def known(self) -> bool:
        """Whether the data set is in GUE."""
        return self.name in GUE

    @property
    def missing(self) -> list[str]:
        """Names of the missing tables."""
        return [f"{split}.csv" for split in SPLITS if split not in self.splits]

    @property
    def may_stand_in(self) -> bool:
        """Whether only train.csv is missing, so that dev.csv can be used for training."""
        return self.missing == ["train.csv"]

    def file(self, split: str) -> Path:
        """Return the path of a split's table."""
        return self.folder / f"{split}.csv"


def find_sets(root: Path) -> list[DataSet]:
    """Return the data sets in or below `root`: GUE's in the published order, then others by name.

    `root` may be the folder above `GUE/`, or the folder of a family or of one data set. Raises `DataError` if there is
    no data set, or if two folders are the same data set of GUE.
    """
    if not root.is_dir():
        raise DataError(f"--data {root}: no such folder; name the folder of <family>/<name>/train.csv")
    found: dict[str, DataSet] = {}
    for folder, splits in _folders(root):
        name = _name(root, folder)
        if name in found:
            raise DataError(f"--data {root}: {found[name].folder} and {folder} are both {name}; pass the one to use")
        found[name] = DataSet(name, folder, splits)
    if not found:
        raise DataError(f"--data {root}: contains no train.csv, dev.csv or test.csv, at any depth; check the path")
    order = {name: index for index, name in enumerate(GUE)}
    return sorted(found.values(), key=lambda data_set: (order.get(data_set.name, len(order)), data_set.name))


def _folders(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the folders with tables, and the splits of each."""
    seen = set()
    for folder, names, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder already visited
            names.clear()
            continue
        seen.add(real)
        # Visit links last, so that a folder with several paths is found under its real one.
        names[:] = sorted((name for name in names if name[0] != "."), key=lambda name: (_is_link(folder, name), name))
        splits = tuple(split for split in SPLITS if f"{split}.csv" in files)
        if splits:
            yield Path(folder), splits


def _is_link(folder: str, name: str) -> bool:
    return Path(folder, name).is_symlink()


def _name(root: Path, folder: Path) -> str:
    """Return the last two parts of the path if GUE has a data set of that name, otherwise the path below `root`."""
    official = "/".join(folder.absolute().parts[-2:])
    if official in GUE:
        return official
    return folder.relative_to(root).as_posix() if folder != root else folder.absolute().name


def choose_sets(found: Sequence[DataSet], patterns: Sequence[str]) -> list[DataSet]:
    """Return the data sets whose name or first folder matches one of `patterns` (with `*` and `?`).

    Without patterns all are returned. Raises `ConfigError` for a pattern without a match.
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
    """Return the reason why a data set can't be run, or None if it can."""
    if not data_set.missing or (stand_in and data_set.may_stand_in):
        return None
    hint = "; --stand-in trains on dev and tests on test" if data_set.may_stand_in else ""
    return f"{' and '.join(data_set.missing)} missing{hint}"
