"""Command `verify --leakage`: print the fraction of val and test sequences with an exact copy in another split.

Subsequences of a given length are compared by a hash that is equal for both strands. Hashes above a limit are dropped
to bound the memory. The limit is the same in every split, so the estimated fraction is unbiased (FracMinHash: Irber
et al., "Lightweight compositional analysis of metagenomes with FracMinHash", 2022). For small genomes all hashes are
kept, so the fraction is exact.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.decode import make_decoder
from data_prep.parallel import run_all
from dnabert_rm.data.manifest import Manifest, TokenizerInfo, load_manifest
from dnabert_rm.data.shards import read_segments
from dnabert_rm.genome.kmer import AMBIGUOUS
from dnabert_rm.utils.progress import progress_bar

MAX_HASHES = 1 << 24
"""Expected number of hashes kept for a large genome."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_PAIRS = (("val", "train"), ("test", "train"), ("test", "val"))


class Overlap(NamedTuple):
    """Overlap of two splits: `compared` subsequences of `split` were compared; `shared` of them occur in `other`."""

    split: str
    other: str
    shared: int
    compared: int


@dataclass(frozen=True)
class HashTask:
    """Everything that a worker needs to hash the subsequences of one shard. Hashes above `limit` are dropped."""

    path: Path
    tokenizer: TokenizerInfo
    length_bases: int
    limit: int


def run(folder: Path, length_bases: int, executor: Executor) -> int:
    """Run `verify --leakage`: print the fraction of val and test subsequences that occur in other splits.

    If there is only one split, print this.
    """
    manifest = load_manifest(folder)
    if len({shard.split for shard in manifest.shards}) < 2:
        print(f"{folder}: has a single split, so no sequence can be in two splits")
        return 0
    print(f"sequences of {length_bases} bases that occur in two splits, on either strand:")
    for split, other, shared, compared in find_overlaps(manifest, folder, length_bases, executor):
        print(f"  {split} in {other}: {100 * shared / max(1, compared):.3f} % ({shared:,} of {compared:,} compared)")
    return 0


def find_overlaps(manifest: Manifest, folder: Path, length_bases: int, executor: Executor) -> list[Overlap]:
    """Compare subsequences of `length_bases` bases and return the overlap of each pair of splits."""
    tokens = sum(shard.tokens for shard in manifest.shards)
    limit = min(2**64 - 1, 2**64 * MAX_HASHES // max(MAX_HASHES, tokens))
    tasks = [HashTask(folder / shard.name, manifest.tokenizer, length_bases, limit) for shard in manifest.shards]
    found: dict[str, list[NDArray[np.uint64]]] = {}
    with progress_bar("leakage", tokens, "base") as bar:
        for index, hashes in run_all(executor, hash_shard, tasks):
            found.setdefault(manifest.shards[index].split, []).append(hashes)
            bar.update(manifest.shards[index].tokens)
    of_split = {split: np.concatenate(hashes) for split, hashes in found.items()}
    return [
        Overlap(split, other, int(np.isin(of_split[split], of_split[other]).sum()), len(of_split[split]))
        for split, other in _PAIRS
        if split in of_split and other in of_split
    ]


def hash_shard(task: HashTask) -> NDArray[np.uint64]:
    """Return the hashes of a shard's forward-strand subsequences, shape (n,). Hashes above `task.limit` are dropped."""
    decode = make_decoder(task.tokenizer, task.path.parent)
    kept = [np.empty(0, np.uint64)]
    for _, meta, ids in read_segments(task.path):
        if meta.get("strand") != "-":
            hashes = subsequence_hashes(decode(ids), task.length_bases)
            kept.append(hashes[hashes <= task.limit])
    return np.concatenate(kept)


def subsequence_hashes(codes: NDArray[np.uint8], length_bases: int) -> NDArray[np.uint64]:
    """Return a strand-independent hash of each subsequence of `length_bases` bases.

    `codes` (N,) are base codes. The result has at most N - length_bases + 1 hashes, uint64, because subsequences with
    an ambiguous base are dropped.
    """
    if len(codes) < length_bases:
        return np.empty(0, dtype=np.uint64)
    forward = _forward_hashes(codes, length_bases)
    backward = _forward_hashes((codes ^ np.uint8(1))[::-1], length_bases)[::-1]
    ambiguous = np.concatenate([[0], np.cumsum(codes >= AMBIGUOUS)])
    unambiguous = ambiguous[length_bases:] == ambiguous[: len(ambiguous) - length_bases]
    return _mix(np.minimum(forward, backward)[unambiguous[: len(forward)]])


def _forward_hashes(codes: NDArray[np.uint8], length: int) -> NDArray[np.uint64]:
    """Return a hash of each subsequence of `length` bases, shape (N,) → (N - length + 1,) for N base codes.

    The hashes are combined from hashes of 1, 2, 4, … bases. Therefore the time grows with the logarithm of `length`.
    """
    words = _mix(codes.astype(np.uint64) + np.uint64(1))
    word_length = 1
    result: NDArray[np.uint64] | None = None
    result_length = 0
    remaining = length
    while remaining:
        if remaining & 1:
            result = words if result is None else _join(words, result, word_length)
            result_length += word_length
        remaining >>= 1
        if remaining:
            words = _join(words, words, word_length)
            word_length *= 2
    assert result is not None and result_length == length
    return result[: max(0, len(codes) - length + 1)]


def _join(left: NDArray[np.uint64], right: NDArray[np.uint64], shift: int) -> NDArray[np.uint64]:
    """Return one hash per position i, combined from `left[i]` and `right[i + shift]`."""
    size = max(0, min(len(left), len(right) - shift))
    return _mix(left[:size] * _MULTIPLIER + right[shift : shift + size])


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = words ^ words >> np.uint64(31)
    words *= _MULTIPLIER
    words ^= words >> np.uint64(29)
    return words
