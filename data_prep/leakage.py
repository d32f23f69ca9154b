"""`verify --leakage`: how much of val and test stands, letter for letter, in another split.

Stretches of L bases are compared by a hash that is the same for both strands. Of all hashes only
those below a limit are kept (FracMinHash: Irber et al., "Lightweight compositional analysis of
metagenomes with FracMinHash", 2022), the same ones in every split, so that memory stays bounded
and the shared fraction is estimated without bias; on small genomes nothing is dropped.
"""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.decode import make_decoder
from data_prep.parallel import run_all
from dnabert_rm.data.manifest import Manifest, TokenizerInfo, load_manifest
from dnabert_rm.data.shards import read_segments
from dnabert_rm.genome.kmer import AMBIGUOUS
from dnabert_rm.utils.progress import progress_bar

KEPT_STRETCHES = 1 << 24
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
Task = tuple[Path, str, TokenizerInfo, int, int]
"""Folder, shard, tokenizer, bases of a stretch, and the limit below which hashes are kept."""


def run(folder: Path, stretch_bases: int, executor: Executor) -> int:
    """`verify --leakage`: print, for val and test, the part of their stretches that other splits hold too."""
    manifest = load_manifest(folder)
    print(f"exact stretches of {stretch_bases} bases on either strand that two splits share:")
    for split, other, shared, total in shared_stretches(manifest, folder, stretch_bases, executor):
        print(f"  {split} in {other}: {100 * shared / max(1, total):.3f} % ({shared:,} of {total:,} looked at)")
    return 0


def shared_stretches(
    manifest: Manifest, folder: Path, stretch_bases: int, executor: Executor
) -> list[tuple[str, str, int, int]]:
    """(split, other split, stretches of the first that the second holds, stretches looked at)."""
    tokens = sum(shard.tokens for shard in manifest.shards)
    limit = min(2**64 - 1, 2**64 * KEPT_STRETCHES // max(KEPT_STRETCHES, tokens))
    tasks = [(folder, shard.name, manifest.tokenizer, stretch_bases, limit) for shard in manifest.shards]
    hashes: dict[str, list[NDArray[np.uint64]]] = {}
    with progress_bar("leakage", tokens, "base") as bar:
        for index, found in run_all(executor, hash_shard, tasks):
            hashes.setdefault(manifest.shards[index].split, []).append(found)
            bar.update(manifest.shards[index].tokens)
    of_split = {split: np.concatenate(found) for split, found in hashes.items()}
    pairs = [("val", "train"), ("test", "train"), ("test", "val")]
    return [
        (split, other, int(np.isin(of_split[split], of_split[other]).sum()), len(of_split[split]))
        for split, other in pairs
        if split in of_split and other in of_split
    ]


def hash_shard(task: Task) -> NDArray[np.uint64]:
    """The kept hashes of every stretch in a shard, (n,)."""
    folder, name, tokenizer, stretch_bases, limit = task
    decode, kept = make_decoder(tokenizer, folder), [np.empty(0, np.uint64)]
    for _, meta, ids in read_segments(folder / name):
        if meta.get("strand") != "-":
            hashes = stretch_hashes(decode(ids), stretch_bases)
            kept.append(hashes[hashes <= limit])
    return np.concatenate(kept)


def stretch_hashes(codes: NDArray[np.uint8], stretch_bases: int) -> NDArray[np.uint64]:
    """Hash of each stretch of `stretch_bases` bases, the same on both strands; stretches with [UNK] are dropped.

    codes (N,) → at most (N - stretch_bases + 1,) uint64.
    """
    forward = _window_hashes(codes, stretch_bases)
    backward = _window_hashes((codes ^ np.uint8(1))[::-1], stretch_bases)[::-1]
    ambiguous = np.concatenate([[0], np.cumsum(codes >= AMBIGUOUS)])
    clean = ambiguous[stretch_bases:] == ambiguous[: len(ambiguous) - stretch_bases]
    return _mix(np.minimum(forward, backward)[clean[: len(forward)]])


def _window_hashes(codes: NDArray[np.uint8], width: int) -> NDArray[np.uint64]:
    """Hash of every window: windows of 1, 2, 4, … bases are joined, mixing in between."""
    words, done, done_width = _mix(codes.astype(np.uint64) + np.uint64(1)), None, 0
    words_width, remaining = 1, width
    while remaining:
        if remaining & 1:
            done = words if done is None else _join(words, done, words_width)
            done_width += words_width
        remaining >>= 1
        if remaining:
            words, words_width = _join(words, words, words_width), 2 * words_width
    assert done is not None and done_width == width
    return done[: max(0, len(codes) - width + 1)]


def _join(left: NDArray[np.uint64], right: NDArray[np.uint64], shift: int) -> NDArray[np.uint64]:
    """Hashes of the windows at i and at i + shift, joined."""
    size = max(0, min(len(left), len(right) - shift))
    return _mix(left[:size] * _MULTIPLIER + right[shift : shift + size])


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = words ^ words >> np.uint64(31)
    words *= _MULTIPLIER
    words ^= words >> np.uint64(29)
    return words
