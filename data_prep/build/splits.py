"""Which split every base belongs to: by whole contigs, or by blocks drawn with a seed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from data_prep.build.options import BuildOptions
from data_prep.build.segments import Line, cut_at, long_enough
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.genome.contigs import Contig
from dnabert_rm.utils.progress import notice

TRAIN, VAL, TEST = range(3)


def matching(contigs: Sequence[Contig], patterns: Sequence[str], flag: str) -> NDArray[np.bool_]:
    """Which contigs are named by `patterns` (NAME, GENOME:NAME, or either with * ? [ ]), shape (contigs,).

    Raises `ConfigError` for a pattern that names none.
    """
    found = np.zeros(len(contigs), dtype=bool)
    names = [(contig.name, f"{contig.genome}:{contig.name}") for contig in contigs]
    for pattern in patterns:
        hits = np.array([pattern in pair for pair in names], dtype=bool)
        if not hits.any():
            hits = np.array([any(fnmatchcase(name, pattern) for name in pair) for pair in names], dtype=bool)
        if not hits.any():
            near = difflib.get_close_matches(pattern, [name for name, _ in names[:10_000]], n=1, cutoff=0.0)
            raise ConfigError(f"{flag} {pattern}: no contig has this name; did you mean {(near or ['none'])[0]!r}?")
        found |= hits
    return found


def split_of_contigs(contigs: Sequence[Contig], options: BuildOptions) -> NDArray[np.int64]:
    """The split of each contig, shape (contigs,), where splits go by whole contigs."""
    val = matching(contigs, options.val_contigs, "--val-contigs")
    test = matching(contigs, options.test_contigs, "--test-contigs")
    if (val & test).any():
        name = contigs[int(np.flatnonzero(val & test)[0])].name
        raise ConfigError(f"--val-contigs and --test-contigs: contig {name!r} is in both; name it in one")
    return np.where(val, VAL, np.where(test, TEST, TRAIN))


def split_by_blocks(
    runs: NDArray[np.int64], line: Line, options: BuildOptions
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut runs (n, 2) on the line so that each lies in one split; returns them, (m, 2), and their splits, (m,).

    Contigs are cut into blocks of about `block_bases`. Blocks with a run that is long enough are put
    in a drawn order, and the first of them go to val, the next to test, the others to train.
    Segments of different splits never share a base. Raises `ConfigError` where there are too few
    blocks for the fractions.
    """
    edges = _block_edges(line, options.block_bases)
    cut = cut_at(runs, edges)
    block = np.searchsorted(edges, cut[:, 0], "right") - 1
    usable = long_enough(cut, options.unit_bases, options.min_tokens)
    sizes = np.zeros(len(edges), dtype=np.int64)
    np.add.at(sizes, block[usable], (cut[:, 1] - cut[:, 0])[usable])
    split = _draw_blocks(sizes, options)
    # Neighbouring blocks of one split stay in one piece, but for the end of a contig, where no run goes on.
    cut = cut_at(runs, edges[1:][split[1:] != split[:-1]])
    return cut, split[np.searchsorted(edges, cut[:, 0], "right") - 1]


def _block_edges(line: Line, block_bases: int) -> NDArray[np.int64]:
    """Where blocks begin on the line, shape (blocks,): nearly equal ones in each contig, at least one."""
    counts = np.maximum(1, np.round(line.lengths / block_bases).astype(np.int64))
    contig = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return line.starts[contig] + line.lengths[contig] * number // counts[contig]


def _draw_blocks(sizes: NDArray[np.int64], options: BuildOptions) -> NDArray[np.int64]:
    """The split of every block, given its usable bases, shape (blocks,); at least one for each split asked for."""
    candidates = np.flatnonzero(sizes)
    order = candidates[random.permutation(random.key(options.seed, "split blocks"), len(candidates))]
    reached = np.cumsum(sizes[order])
    split, first = np.full(len(sizes), TRAIN), 0
    asked = (VAL, "--val-fraction", options.val_fraction), (TEST, "--test-fraction", options.test_fraction)
    for number, flag, fraction in asked:
        if not fraction:
            continue
        if first + 1 >= len(order):
            break
        before = reached[first - 1] if first else 0
        last = first + 1 + int(np.argmin(np.abs(reached[first:] - before - fraction * reached[-1])))
        _tell_if_far(flag, fraction, float(reached[last - 1] - before) / float(reached[-1]), options.block_bases)
        split[order[first:last]] = number
        first = last
    wanted = {TRAIN, *([VAL] if options.val_fraction else []), *([TEST] if options.test_fraction else [])}
    if set(split[order].tolist()) != wanted:
        raise ConfigError(
            f"--val-fraction/--test-fraction: only {len(candidates)} blocks of --block-bases {options.block_bases} "
            "hold sequence, too few to split; choose smaller blocks"
        )
    return split


def _tell_if_far(flag: str, fraction: float, share: float, block_bases: int) -> None:
    """Say it where whole blocks come to another share of the bases than was asked for."""
    if abs(share - fraction) > fraction / 2:
        notice(f"warning: {flag} {fraction:g}: whole blocks of {block_bases:,} bases make it {share:.2g}; smaller "
               "--block-bases come nearer")  # fmt: skip
