"""Baselines for bits per base: base frequencies and Markov chains of the training data.

They don't depend on the model's weights. They are stored with the data, so that later runs can load them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.data.held_out import HeldOutRegion, HiddenStretches
from dnabert_rm.data.split_reader import SplitReader
from dnabert_rm.genome.kmer import AMBIGUOUS, decode_codes
from dnabert_rm.genome.kmer_counts import composition_probabilities, count_kmers, kmer_cross_entropy
from dnabert_rm.genome.markov import MARKOV_ORDERS, fit_chain, hidden_base_bits, hidden_base_probabilities
from dnabert_rm.utils import random
from dnabert_rm.utils.files import atomic_file

MAX_TRAINING_BASES = 1_000_000_000
"""Of larger training data only random shards with about this number of bases are counted."""
LINE_CONTEXT_BASES = 24
"""Bases beside a region that the lines can depend on: the end of a hidden stretch, and the context of a chain."""
COMPOSITION = "composition"
_VERSION = 1
"""Raise this number when the computation of the lines changes, so that stored lines are not reused."""


@dataclass(frozen=True)
class Baselines:
    """Bits of each hidden base under base frequencies ("composition") and Markov chains ("markov_2" and so on)."""

    bits: dict[str, dict[int, NDArray[np.float64]]]
    """For each line and number n of hidden bases, the bits of the bases of all stretches, (S, n)."""
    kmer_frequencies: float
    """Cross-entropy of held-out k-mers under the frequencies of training k-mers, in nats per token."""

    def to_json(self) -> dict[str, Any]:
        """Return mean bits as in metrics.jsonl: by order of the Markov chain, then by number of hidden bases.

        `kmer_frequencies` is the plain cross-entropy. In metrics.jsonl it is the loss of `plateau_loss`.
        """
        means = {line: {str(n): float(bits.mean()) for n, bits in by_n.items()} for line, by_n in self.bits.items()}
        composition = means.pop(COMPOSITION)
        return {
            "markov": {line.removeprefix("markov_"): by_n for line, by_n in means.items()},
            COMPOSITION: composition,
            "kmer_frequencies": self.kmer_frequencies,
        }


def measure_baselines(
    training: Sequence[SplitReader],
    regions: Sequence[HeldOutRegion],
    stretches: Sequence[HiddenStretches],
    k: int,
    orders: Sequence[int] = MARKOV_ORDERS,
) -> Baselines:
    """Return the lines for some held-out stretches. Lines that were computed before are loaded.

    The lines are stored in a subfolder of the first training folder, or in the shard cache if that folder is remote.
    If the folder can't be written, the lines are not stored.

    Args:
        training: Readers of the training data.
        regions: The held-out regions.
        stretches: The hidden stretches of the regions, with one entry for each number of hidden bases.
        k: Bases per token, for the cross-entropy of k-mers.
        orders: Orders of the Markov chains, from 1 to 11. Those that `orders_for` excludes are left out.

    Raises `DataError` if a shard can't be read.
    """
    orders = tuple(sorted(set(orders)))
    regions, stretches = _without_far_context(regions, stretches)
    path = training[0].folder.derived / f"{_key(training, regions, stretches, k, orders)}.npz"
    if stored := _load(path, stretches):
        return stored
    lines = _compute(training, regions, stretches, k, orders)
    if not any(reader.bad for reader in training):  # repaired data have the same fingerprint
        _store(path, lines)
    return lines


def _without_far_context(
    regions: Sequence[HeldOutRegion], stretches: Sequence[HiddenStretches]
) -> tuple[list[HeldOutRegion], list[HiddenStretches]]:
    """Cut the context of each region to the bases that the lines depend on, so that it does not depend on a window."""
    removed = np.array([max(0, region.first - LINE_CONTEXT_BASES) for region in regions], dtype=np.int64)
    cut = [
        dataclasses.replace(
            region,
            codes=region.codes[begin : region.last + LINE_CONTEXT_BASES],
            first=region.first - begin,
            last=region.last - begin,
        )
        for region, begin in zip(regions, removed.tolist(), strict=True)
    ]
    moved = [dataclasses.replace(found, start=found.start - removed[found.region]) for found in stretches]
    return cut, moved


def _key(
    training: Sequence[SplitReader],
    regions: Sequence[HeldOutRegion],
    stretches: Sequence[HiddenStretches],
    k: int,
    orders: tuple[int, ...],
) -> str:
    """Return a name for the lines: a hash of everything that they depend on."""
    digest = hashlib.sha256(f"{_VERSION} {orders} {MAX_TRAINING_BASES} {k}".encode())
    for reader in training:
        digest.update(f"{reader.manifest.fingerprint} {reader.split}".encode())
    for region in regions:
        digest.update(region.codes.tobytes())
    for found in stretches:
        digest.update(f"{found.num_hidden}".encode() + found.region.tobytes() + found.start.tobytes())
    return digest.hexdigest()[:32]


def _compute(
    training: Sequence[SplitReader],
    regions: Sequence[HeldOutRegion],
    stretches: Sequence[HiddenStretches],
    k: int,
    wanted: Sequence[int],
) -> Baselines:
    orders = orders_for(sum(shard.tokens for reader in training for shard in reader.shards), wanted)
    counts = count_kmers(training_codes(training), max(k, orders[-1] + 1))
    chain = fit_chain(counts, orders[-1])
    chains = {f"markov_{order}": chain.of_order(order) for order in orders}
    # One sequence of all regions. An ambiguous base separates them, so no context crosses their borders.
    joined = np.concatenate([np.append(region.codes, np.uint8(AMBIGUOUS)) for region in regions])
    offsets = np.cumsum([0, *(len(region.codes) + 1 for region in regions)])
    composition = -np.log2(composition_probabilities(counts))
    bits: dict[str, dict[int, NDArray[np.float64]]] = {line: {} for line in (COMPOSITION, *chains)}
    for found in stretches:
        n, starts = found.num_hidden, offsets[found.region] + found.start
        bits[COMPOSITION][n] = composition[joined[starts[:, None] + np.arange(n)]]
        for line, of_order in chains.items():
            probabilities = hidden_base_probabilities(of_order, joined, starts, n)
            bits[line][n] = hidden_base_bits(probabilities, joined, starts)
    scored = count_kmers((region.codes[region.first : region.last] for region in regions), k)
    return Baselines(bits, kmer_cross_entropy(counts, scored, k))


def orders_for(num_bases: int, wanted: Sequence[int] = MARKOV_ORDERS) -> list[int]:
    """Return the `wanted` orders of Markov chains that `num_bases` training bases allow.

    An order needs at least one base per four contexts. The smallest one is always allowed.
    """
    return [order for order in wanted if order == min(wanted) or 4**order <= 4 * num_bases]


def training_codes(training: Sequence[SplitReader]) -> Iterator[NDArray[np.uint8]]:
    """Yield the base codes of all training segments, or of random shards with about `MAX_TRAINING_BASES` bases.

    Damaged shards are left out if the readers allow it.
    """
    shards = [(reader, number) for reader in training for number in range(len(reader.shards))]
    num_bases = 0
    for index in random.permutation(random.key(0, "Markov chain"), len(shards)).tolist():
        reader, shard = shards[index]
        if num_bases >= MAX_TRAINING_BASES:
            return
        if not reader.is_usable(shard):
            continue
        k = int(reader.manifest.tokenizer.k or 0)
        for segment, num_tokens in enumerate(reader.shards[shard].segments.tolist()):
            yield decode_codes(reader.tokens(shard, segment, 0, num_tokens), k)
        num_bases += reader.shards[shard].tokens


def _load(path: Path, stretches: Sequence[HiddenStretches]) -> Baselines | None:
    """Return the stored lines, or None if they are missing or unreadable."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            # Files of an archive keep their order, so the lines do too.
            lines = dict.fromkeys(name.rpartition(" ")[0] for name in stored.files if " " in name)
            widths = [found.num_hidden for found in stretches]
            bits = {line: {n: stored[f"{line} {n}"] for n in widths} for line in lines}
            return Baselines(bits, float(stored["kmer_frequencies"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _store(path: Path, lines: Baselines) -> None:
    arrays: dict[str, Any] = {f"{line} {n}": bits for line, by_n in lines.bits.items() for n, bits in by_n.items()}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(stream, kmer_frequencies=np.array(lines.kmer_frequencies), **arrays)
