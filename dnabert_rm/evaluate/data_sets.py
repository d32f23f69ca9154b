"""Data sets of a suite in a folder: where they are, which of them are chosen, and whether they can be run."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnabert_rm.evaluate.suite import Suite, load_suite, suite_names
from dnabert_rm.utils.errors import ConfigError, DataError

SPLITS = ("train", "dev", "test")
STAND_IN = "dev → test stand-in"
"""Label of scores after training on dev.csv with `--stand-in`, because train.csv is missing.

Such scores are not scores of the suite.
"""


@dataclass(frozen=True)
class DataSet:
    """A data set folder, which contains at least one of train.csv, dev.csv and test.csv."""

    name: str
    """Name in the suite, e.g. `mouse/0`. For other data sets, the path below the searched folder."""
    folder: Path
    splits: tuple[str, ...]
    """Splits whose CSV files exist."""
    known: bool = False
    """Whether the suite has the data set."""

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


def find_sets(root: Path, suite: Suite) -> list[DataSet]:
    """Return the data sets in `root` and its subfolders.

    Data sets of the suite come first, in its order. Other data sets follow, sorted by name. `root` may be a single data
    set, or any folder above data sets. Raise `DataError` if `root` contains no data set, or two data sets with the
    same name.
    """
    if not root.is_dir():
        raise DataError(f"--data {root}: no such folder; pass the folder that contains <family>/<name>/train.csv")
    found: dict[str, DataSet] = {}
    for folder, splits in _folders(root):
        official = suite.name_of_folder(folder)
        name = official or _path_below(root, folder)
        if name in found:
            raise DataError(
                f"--data {root}: {found[name].folder} and {folder} are both {name}; "
                f"pass a folder with only one data set {name}"
            )
        found[name] = DataSet(name, folder, splits, known=official is not None)
    if not found:
        raise DataError(
            f"--data {root}: no train.csv, dev.csv or test.csv in this folder or its subfolders; check the path"
        )
    return sorted(found.values(), key=lambda data_set: (suite.order_of(data_set.name), data_set.name))


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


def _path_below(root: Path, folder: Path) -> str:
    return folder.relative_to(root).as_posix() if folder != root else folder.absolute().name


def other_suite_warning(found: Sequence[DataSet], suite: Suite) -> str | None:
    """Return a warning if some data sets are rather those of another shipped suite. Otherwise return None.

    They are if the other suite matches more of their path: GUE's `EMP/H3K4me1` more than the `H3K4me1` of another
    suite. A single name outside the suite, such as `enhancers`, may also be a user's own.
    """

    def parts(name: str | None) -> int:
        return len(name.split("/")) if name else 0

    for name in suite_names():
        other = load_suite(name)
        names = {data_set.name: other.name_of_folder(data_set.folder) for data_set in found}
        own = {data_set.name: suite.name_of_folder(data_set.folder) for data_set in found}
        matches = [key for key, match in names.items() if own[key] and parts(match) > parts(own[key])]
        if not matches and not any(own.values()):
            alone = [key for key, match in names.items() if match]
            matches = alone if len(alone) > 1 else []
        if matches:
            return (
                f"warning: {', '.join(matches)}: data sets of {other.name}, not of {suite.name}; pass --suite {name} "
                "for their metrics and settings"
            )
    return None


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


def reason_not_to_run(data_set: DataSet, stand_in: bool) -> str | None:
    """Return the reason why fine-tuning on a data set is impossible, or None if fine-tuning is possible.

    The reason names the missing CSV files. If `stand_in` is true, dev.csv may replace a missing train.csv.
    """
    if not data_set.missing or (stand_in and data_set.may_stand_in):
        return None
    hint = "; pass --stand-in to train on dev.csv and test on test.csv" if data_set.may_stand_in else ""
    return f"{' and '.join(data_set.missing)} missing{hint}"
