"""Assignment of bases to train, val and test: by whole contigs, or by random blocks."""

from __future__ import annotations

import bisect
import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from data_prep.sharding.options import BuildOptions, is_bed_name
from data_prep.sharding.segments import ContigAxis, cut_at, long_enough
from dnabert_rm.genome.contigs import Contig
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.progress import notice

TRAIN, VAL, TEST = range(3)
_BED_HINTS = {"--exclude": " and no such file exists", "--include": " (pass BED files to --regions)"}
_WILDCARD = re.compile(r"[*?\[]")


def matching(contigs: Sequence[Contig], patterns: Sequence[str], flag: str) -> NDArray[np.bool_]:
    """Return whether each contig matches any of `patterns`, shape (contigs,).

    A pattern is NAME or GENOME:NAME and may contain the wildcards * ? [ ]. If the pattern is itself the name of a
    contig, wildcards are not expanded. Raises `ConfigError` for a pattern that matches no contig.
    """
    matched = np.zeros(len(contigs), dtype=bool)
    if not patterns:
        return matched
    by_name: dict[str, list[int]] = {}
    for index, contig in enumerate(contigs):
        for name in (contig.name, f"{contig.genome}:{contig.name}"):
            by_name.setdefault(name, []).append(index)
    sorted_names = sorted(by_name) if any(pattern not in by_name for pattern in patterns) else []
    for pattern in patterns:
        hits = by_name.get(pattern) or [
            index
            for name in _with_prefix(sorted_names, _WILDCARD.split(pattern)[0])
            if fnmatchcase(name, pattern)
            for index in by_name[name]
        ]
        if not hits:
            hint = _BED_HINTS.get(flag, "") if is_bed_name(pattern) else ""
            if "," in pattern and any(part in by_name for part in pattern.split(",")):
                raise ConfigError(f"{flag} {pattern}: no contig has this name; separate names with blanks, not commas")
            near = similar_contig(contigs, pattern)
            raise ConfigError(f"{flag} {pattern}: no contig has this name{hint}; did you mean {near!r}?")
        matched[hits] = True
    return matched


def similar_contig(contigs: Sequence[Contig], name: str) -> str:
    """Return the contig name that is most similar to `name`, of the first 10,000 contigs."""
    near = difflib.get_close_matches(name, [contig.name for contig in contigs[:10_000]], n=1, cutoff=0.0)
    return (near or ["none"])[0]


def _with_prefix(sorted_names: list[str], prefix: str) -> list[str]:
    """Return the names that begin with `prefix`, found by binary search in `sorted_names`."""
    start = bisect.bisect_left(sorted_names, prefix)
    end = bisect.bisect_left(sorted_names, True, start, key=lambda name: not name.startswith(prefix))
    return sorted_names[start:end]


def split_of_contigs(contigs: Sequence[Contig], options: BuildOptions) -> NDArray[np.int64]:
    """Return each contig's split according to --val-contigs and --test-contigs, shape (contigs,).

    The values are `TRAIN`, `VAL` and `TEST`.
    """
    val = matching(contigs, options.val_contigs, "--val-contigs")
    test = matching(contigs, options.test_contigs, "--test-contigs")
    if (val & test).any():
        name = contigs[int(np.flatnonzero(val & test)[0])].name
        raise ConfigError(f"--val-contigs and --test-contigs: contig {name!r} is in both; pass it to only one of them")
    return np.where(val, VAL, np.where(test, TEST, TRAIN))


def split_by_blocks(
    runs: NDArray[np.int64], axis: ContigAxis, options: BuildOptions, whole_runs: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Assign random blocks to splits, and cut gap-free ranges where the split changes.

    Return the parts of all ranges, shape (m, 2), and the split of each part, shape (m,).

    `runs` (n, 2) holds the start and end of each range, as positions along all contigs laid end to end (`axis`).
    Contigs are divided into blocks of about `options.block_bases` bases. Blocks that contain a range of at least
    `options.min_tokens` tokens are shuffled. In shuffled order, the first blocks are assigned to val and the next ones
    to test. All other blocks are assigned to train. Segments of different splits never share a base.

    In a build with BED files, `whole_runs` (w, 2) holds the gap-free ranges of the whole contigs. Blocks are drawn
    from these ranges, so builds hold out the same blocks whatever their BED files.

    Raises `ConfigError` if there are too few blocks for the requested splits.
    """
    edges = block_starts(axis, options.block_bases)
    cut = cut_at(runs if whole_runs is None else whole_runs, edges)
    block = np.searchsorted(edges, cut[:, 0], "right") - 1
    usable = long_enough(cut, options.unit_bases, options.min_tokens)
    sizes = np.zeros(len(edges), dtype=np.int64)
    np.add.at(sizes, block[usable], (cut[:, 1] - cut[:, 0])[usable])
    split = _assign_blocks(sizes, options)
    # Ranges are not cut between blocks of one split. No range continues beyond its contig.
    cut = cut_at(runs, edges[1:][split[1:] != split[:-1]])
    return cut, split[np.searchsorted(edges, cut[:, 0], "right") - 1]


def block_starts(axis: ContigAxis, block_bases: int) -> NDArray[np.int64]:
    """Return the first position of each block, shape (blocks,). Positions count along all contigs laid end to end.

    Each contig has at least one block. The blocks of a contig have nearly equal lengths.
    """
    counts = np.maximum(1, np.round(axis.lengths / block_bases).astype(np.int64))
    contig = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return axis.starts[contig] + axis.lengths[contig] * number // counts[contig]


def _assign_blocks(sizes: NDArray[np.int64], options: BuildOptions) -> NDArray[np.int64]:
    """Return each block's split: `TRAIN`, `VAL` or `TEST`, shape (blocks,).

    Train and every requested split have at least one block. Raises `ConfigError` if there are too few blocks.

    Args:
        sizes: For each block, the number of bases that can be in segments, (blocks,).
    """
    candidates = np.flatnonzero(sizes)
    order = candidates[random.permutation(random.key(options.seed, "split blocks"), len(candidates))]
    reached = np.cumsum(sizes[order])
    split = np.full(len(sizes), TRAIN)
    first = 0
    requested = (VAL, "--val-fraction", options.val_fraction), (TEST, "--test-fraction", options.test_fraction)
    for number, flag, fraction in requested:
        if not fraction:
            continue
        if first + 1 >= len(order):
            break
        before = reached[first - 1] if first else 0
        last = first + 1 + int(np.argmin(np.abs(reached[first:] - before - fraction * reached[-1])))
        _warn_if_far(flag, fraction, float(reached[last - 1] - before) / float(reached[-1]), options.block_bases)
        split[order[first:last]] = number
        first = last
    wanted = {TRAIN, *([VAL] if options.val_fraction else []), *([TEST] if options.test_fraction else [])}
    if set(split[order].tolist()) != wanted:
        raise ConfigError(
            f"--val-fraction/--test-fraction: only {len(candidates)} blocks of {options.block_bases} bases "
            "contain sequence, too few to split; lower --block-bases"
        )
    return split


def _warn_if_far(flag: str, fraction: float, actual: float, block_bases: int, where: str = "") -> None:
    """Warn if a split's fraction of the bases is below 0.5 times or above 1.5 times the requested fraction."""
    if abs(actual - fraction) > fraction / 2:
        notice(
            f"warning: {flag} {fraction:g}: with whole blocks of {block_bases:,} bases the fraction {where}is "
            f"{actual:.2g}; lower --block-bases"
        )


def warn_of_empty_splits(bases: Sequence[int], options: BuildOptions, where: str) -> None:
    """Warn if train has no base, or if held-out contigs have none.

    `bases` holds the number of bases of train, val and test, counted in runs that are long enough for a segment.
    `where` says in the warnings where they are: " in the regions" of BED files, or nothing.
    """
    if not bases[TRAIN]:
        fix = "; hold out fewer contigs, or use --val-fraction in place of --val-contigs and --test-contigs"
        notice(f"warning: all bases{where} are held out, so there is no train split{'' if where else fix}")
    for number, name, names in ((VAL, "val", options.val_contigs), (TEST, "test", options.test_contigs)):
        if names and not bases[number]:
            base = f"base{where}" if where else "base to store"
            notice(f"warning: --{name}-contigs {' '.join(names)}: have no {base}, so there is no {name} split")


def check_fractions_of_regions(bases: Sequence[int], options: BuildOptions) -> None:
    """Raise `ConfigError` if a split by fraction has no base inside the BED files' regions, or leaves none for train.

    `bases` is as in `warn_of_empty_splits`. A fraction that is far from the requested one gives a warning.
    """
    for number, name, fraction in ((VAL, "val", options.val_fraction), (TEST, "test", options.test_fraction)):
        if not fraction:
            continue
        if not (bases[number] and bases[TRAIN]):
            raise ConfigError(
                f"--{name}-fraction {fraction:g}: train or {name} has no base in the regions; lower --block-bases in "
                "every build of the mixture, or use --val-contigs and --test-contigs"
            )
        where = "of the bases in the regions "
        _warn_if_far(f"--{name}-fraction", fraction, bases[number] / sum(bases), options.block_bases, where)
