"""The data sets in a folder: found by their tables, named as GUE names them, missing splits named too."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnabert_rm.downstream.benchmark.settings import GUE
from dnabert_rm.errors import ConfigError, DataError

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
