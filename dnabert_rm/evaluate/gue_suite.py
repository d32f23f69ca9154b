"""GUE's 28 data sets: how each is fine-tuned, and the published means to set ours beside.

Settings: the scripts of Zhou et al. for models over k-mers (DNABERT-2's repository, `finetune/scripts/run_dnabert1.sh`,
batch of four GPUs × 8 rows). Means: Zhou et al., "DNABERT-2: Efficient Foundation Model and Benchmark for Multi-Species
Genome", arXiv:2306.15006.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnabert_rm.utils.errors import ConfigError, DataError


@dataclass(frozen=True)
class SetSettings:
    """What a data set's fine-tuning is told, by the names of `FinetuneSettings`."""

    epochs: int = 3
    eval_steps: int = 200
    warmup_steps: int = 50
    max_steps: int | None = None
    """As Trainer reads it: exactly so many steps, whatever `epochs` says."""
    learning_rate: float = 3e-5
    batch_size: int = 32
    weight_decay: float = 0.01


@dataclass(frozen=True)
class GueSet:
    """One data set of GUE."""

    name: str
    """Official folder, e.g. `mouse/0`."""
    family: str
    """The task whose data sets are averaged in the published table."""
    num_classes: int
    num_bases: int
    num_tokens: int
    """The scripts' longest input, specials included; enough for the overlapping k-mers of every k from 3 to 6."""
    settings: SetSettings


METRICS = {"Covid": "f1_macro"}
"""The metric of a family, by its name in `scores.json`; `DEFAULT_METRIC` for the others."""
DEFAULT_METRIC = "mcc"
METRIC_TITLES = {"mcc": "MCC", "f1_macro": "macro F1"}
UNKNOWN_SETTINGS = SetSettings()
"""For folders that are none of GUE's."""
_TATA = SetSettings(epochs=10)
_PROMOTER = SetSettings(epochs=4, eval_steps=400)
_MARKS = ("H3", "H3K14ac", "H3K36me3", "H3K4me1", "H3K4me2", "H3K4me3", "H3K79me3", "H3K9ac", "H4", "H4ac")


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
        yield GueSet(f"prom/{stem}_tata", family, 2, bases, tokens, _TATA)
    yield GueSet("splice/reconstructed", "splice", 3, 400, 410, SetSettings(epochs=5))
    yield GueSet("virus/covid", "Covid", 9, 1000, 1024, SetSettings(epochs=9))


GUE = {gue_set.name: gue_set for gue_set in _all_sets()}
"""The data sets by name, in the order of the published table."""
FAMILIES = tuple(dict.fromkeys(gue_set.family for gue_set in GUE.values()))
PUBLISHED = {
    "DNABERT (3-mer)": (49.54, 64.43, 57.74, 84.63, 72.96, 84.14, 62.23),
    "DNABERT (6-mer)": (49.10, 64.17, 56.43, 81.70, 71.81, 84.07, 55.50),
    "NT-500M-human": (45.35, 57.14, 45.24, 85.51, 66.54, 79.71, 50.82),
    "NT-2500M-multi": (58.06, 63.33, 67.02, 88.15, 71.63, 89.35, 73.04),
    "DNABERT-2": (55.98, 70.11, 68.00, 84.21, 70.53, 84.99, 71.02),
}
"""Means of each family, in the order of `FAMILIES`: MCC × 100, macro F1 × 100 for Covid."""
PUBLISHED_SOURCE = "Zhou et al. 2023, arXiv:2306.15006"


def family_of(name: str) -> str | None:
    """The family of a data set; None where it is none of GUE's."""
    return GUE[name].family if name in GUE else None


def metric_of(name: str) -> str:
    """The metric that a data set is judged by, named as in `scores.json`."""
    return METRICS.get(family_of(name) or "", DEFAULT_METRIC)


def settings_of(name: str) -> SetSettings:
    """A data set's settings; the defaults where it is none of GUE's."""
    return GUE[name].settings if name in GUE else UNKNOWN_SETTINGS


SPLITS = ("train", "dev", "test")
STAND_IN = "dev → test stand-in"
"""What a run is called that trained on dev, for want of train; never a GUE number."""


@dataclass(frozen=True)
class DataSet:
    """A folder with at least one of train.csv, dev.csv, test.csv."""

    name: str
    """`family/name` as GUE has it, else the path below the folder that was searched."""
    folder: Path
    splits: tuple[str, ...]
    """Those that are there."""

    @property
    def known(self) -> bool:
        """Whether it is one of GUE's."""
        return self.name in GUE

    @property
    def missing(self) -> list[str]:
        """Files that are not there."""
        return [f"{split}.csv" for split in SPLITS if split not in self.splits]

    @property
    def may_stand_in(self) -> bool:
        """Whether all but train is there."""
        return self.missing == ["train.csv"]

    def file(self, split: str) -> Path:
        """The table of a split."""
        return self.folder / f"{split}.csv"


def find_sets(root: Path) -> list[DataSet]:
    """Every data set in or below `root`: GUE's in its own order, then the others by name.

    The official layout may have `GUE/` on top, or `root` may be a family's or a data set's folder. `DataError` where
    there is none, or where two folders are the same data set of GUE.
    """
    if not root.is_dir():
        raise DataError(f"--data {root}: no such folder; name the one that holds <family>/<name>/train.csv and so on")
    found: dict[str, DataSet] = {}
    for folder, splits in _folders(root):
        name = _name(root, folder)
        if name in found:
            raise DataError(f"--data {root}: {found[name].folder} and {folder} are both {name}; name the one to use")
        found[name] = DataSet(name, folder, splits)
    if not found:
        raise DataError(f"--data {root}: holds no train.csv, dev.csv or test.csv, at any depth; check the path")
    order = {name: number for number, name in enumerate(GUE)}
    return sorted(found.values(), key=lambda data_set: (order.get(data_set.name, len(order)), data_set.name))


def _folders(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    seen = set()
    for folder, names, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to where we have been
            names.clear()
            continue
        seen.add(real)
        # Links last, so that what is there under its own name has that name.
        names[:] = sorted((name for name in names if name[0] != "."), key=lambda name: (_is_link(folder, name), name))
        splits = tuple(split for split in SPLITS if f"{split}.csv" in files)
        if splits:
            yield Path(folder), splits


def _is_link(folder: str, name: str) -> bool:
    return Path(folder, name).is_symlink()


def _name(root: Path, folder: Path) -> str:
    """The last two parts of the path where GUE has such a set, else the path below `root`."""
    official = "/".join(folder.absolute().parts[-2:])
    if official in GUE:
        return official
    return folder.relative_to(root).as_posix() if folder != root else folder.absolute().name


def choose_sets(found: Sequence[DataSet], patterns: Sequence[str]) -> list[DataSet]:
    """Those of the sets whose name or first folder is among `patterns` (with `*` and `?`); all of them without any.

    `ConfigError` for a pattern that none fits.
    """
    if not patterns:
        return list(found)
    fits = {
        pattern: [s for s in found if any(fnmatch.fnmatchcase(s.name, p) for p in (pattern, f"{pattern}/*"))]
        for pattern in patterns
    }
    if nothing := [pattern for pattern, sets in fits.items() if not sets]:
        there = ", ".join(data_set.name for data_set in found)
        raise ConfigError(f"--sets {','.join(nothing)}: no such data set in --data, which has {there}")
    chosen = {data_set.name for sets in fits.values() for data_set in sets}
    return [data_set for data_set in found if data_set.name in chosen]


def why_not(data_set: DataSet, stand_in: bool) -> str | None:
    """Why a data set can't be run, in words; None where it can."""
    if not data_set.missing or (stand_in and data_set.may_stand_in):
        return None
    hint = "; --stand-in trains on dev and tests on test" if data_set.may_stand_in else ""
    return f"{' and '.join(data_set.missing)} missing{hint}"
