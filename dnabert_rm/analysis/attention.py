"""Where the layers attend to: entropy, mass on the most attended tokens, mean maps, what [CLS] looks at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.storage import StorageSettings, prepared_folder
from dnabert_rm.genome.kmer import CLS_ID, SEP_ID, UNK_ID, encode
from dnabert_rm.utils.errors import ConfigError, DataError

TOP = 5
"""Tokens whose mass is summed."""


@dataclass(frozen=True)
class LayerAttention:
    """One layer over all windows. L tokens a window, [CLS] and [SEP] included; H heads."""

    entropy: NDArray[np.float64]
    """(H,) nats: of each query's distribution over the tokens, the mean over queries and windows. Uniform: log L."""
    top_mass: NDArray[np.float64]
    """(H,) the mass that a query gives to its own 5 most attended tokens, the mean over queries and windows."""
    top_mass_of_window: NDArray[np.float64]
    """(H,) the mass on the 5 tokens that receive most from all queries of a window together; mean over windows."""
    mean_map: NDArray[np.float64]
    """(L, L) weight of each query (row) for each key (column), the mean over heads and windows."""
    cls_map: NDArray[np.float64]
    """(H, L) weight of the query [CLS] for each key, the mean over windows."""


class AttentionSums:
    """Attention of many windows, added up layer by layer, so that only one batch is ever held."""

    def __init__(self) -> None:
        self.num_windows = 0
        self._sums: list[dict[str, NDArray[np.float64]]] = []

    def add(self, attentions: Sequence[NDArray]) -> None:
        """Add a batch: for each layer the weights (B, H, L, L), rows of queries that sum to 1; L is always the same."""
        found = [_layer_sums(np.asarray(weights, dtype=np.float32)) for weights in attentions]
        if not self._sums:
            self._sums = found
        else:
            for own, new in zip(self._sums, found, strict=True):
                for name, values in new.items():
                    own[name] += values
        self.num_windows += len(attentions[0])

    def layers(self) -> list[LayerAttention]:
        """The means over all windows, a layer each."""
        assert self.num_windows, "no windows were added"
        return [
            LayerAttention(**{name: values / self.num_windows for name, values in sums.items()}) for sums in self._sums
        ]


def summarise(batches: Iterable[Sequence[NDArray]]) -> list[LayerAttention]:
    """The layers' means over batches of attentions, each as `AttentionSums.add` takes it."""
    sums = AttentionSums()
    for attentions in batches:
        sums.add(attentions)
    return sums.layers()


def _layer_sums(weights: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Sums over the windows of a batch; the names are `LayerAttention`'s."""
    top = min(TOP, weights.shape[-1])
    received = weights.mean(axis=2)  # (B, H, L): each key's share of all queries' attention
    return {
        "entropy": entropy(weights).mean(axis=-1).sum(axis=0, dtype=np.float64),
        "top_mass": _largest(weights, top).mean(axis=-1).sum(axis=0, dtype=np.float64),
        "top_mass_of_window": _largest(received, top).sum(axis=0, dtype=np.float64),
        "mean_map": weights.mean(axis=1).sum(axis=0, dtype=np.float64),
        "cls_map": weights[:, :, 0].sum(axis=0, dtype=np.float64),
    }


def entropy(weights: NDArray) -> NDArray:
    """Shannon entropy in nats over the last axis, (…, L) → (…); 0 log 0 is 0."""
    return -(weights * np.log(np.where(weights > 0, weights, 1))).sum(axis=-1)


def _largest(weights: NDArray, count: int) -> NDArray:
    """Sum of the largest `count` values over the last axis, (…, L) → (…)."""
    return np.partition(weights, -count, axis=-1)[..., -count:].sum(axis=-1)


def attention_record(layers: Sequence[LayerAttention]) -> list[dict[str, Any]]:
    """The numbers for a JSON file, a layer each: means over heads, and by head."""
    longest = math.log(layers[0].mean_map.shape[0])
    return [
        {
            "layer": number,
            "entropy": float(layer.entropy.mean()),
            "entropy_share": float(layer.entropy.mean() / longest),
            "top5_mass": float(layer.top_mass.mean()),
            "top5_mass_of_window": float(layer.top_mass_of_window.mean()),
            "cls_entropy": float(entropy(layer.cls_map).mean()),
            "by_head": {
                "entropy": layer.entropy.tolist(),
                "entropy_share": (layer.entropy / longest).tolist(),
                "top5_mass": layer.top_mass.tolist(),
                "top5_mass_of_window": layer.top_mass_of_window.tolist(),
            },
        }
        for number, layer in enumerate(layers, 1)
    ]


ELEMENTS_AT_ONCE = 1 << 27
"""Attention weights of one batch: half a gigabyte in fp32."""


def windows_of_data(
    path: str, *, split: str | None, window: int, num_windows: int, overlapping: bool, seed: int
) -> tuple[NDArray[np.int64], str, int | None]:
    """Windows of a prepared folder, unmasked, of the forward strand.

    Returns ids (N, window) with [CLS] and [SEP], the split (by default val, or train where there is no val), and k.
    """
    manifest = prepared_folder(path, StorageSettings()).manifest()
    splits = {shard.split for shard in manifest.shards}
    chosen = split or ("val" if "val" in splits else "train")
    if chosen not in splits:
        raise ConfigError(f"--split {chosen}: {path} has {', '.join(sorted(splits))}")
    dataset = WindowDataset([path], [], WindowSettings(split=chosen, window=window, overlap=overlapping), seed)
    samples = np.arange(min(num_windows, dataset.num_windows))
    return with_ends(dataset.windows(samples, 0).ids), chosen, manifest.tokenizer.k


def windows_of_records(
    records: Iterable[tuple[str, Iterable[bytes]]],
    shown: str,
    k: int,
    *,
    window: int,
    num_windows: int,
    overlapping: bool,
) -> NDArray[np.int64]:
    """Windows cut one after another from records, each a name and its letters in blocks; (N, window).

    Windows with letters other than A, C, G, T, and the rest of a record that fills no window, are passed over.
    `DataError` where none is left; `shown` names the source there.
    """
    stride = 1 if overlapping else k
    span = (window - 3) * stride + k  # bases that the window's tokens cover
    pieces = (piece for _, blocks in records for piece in _pieces(blocks, span))
    whole = (ids for piece in pieces if UNK_ID not in (ids := encode(piece, k)[::stride]))
    found = list(itertools.islice(whole, num_windows))
    if not found:
        raise DataError(f"{shown}: no stretch of {span} bases A, C, G, T for a window; lower --window {window}")
    return with_ends(np.stack(found))


def _pieces(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Pieces of `size` letters, side by side; a shorter rest is left out."""
    held = b""
    for block in blocks:
        held += block
        whole = len(held) // size * size
        yield from (held[start : start + size] for start in range(0, whole, size))
        held = held[whole:]


def with_ends(ids: NDArray) -> NDArray[np.int64]:
    """(N, T) → (N, T + 2): [CLS] before each row and [SEP] behind."""
    return np.pad(ids.astype(np.int64), ((0, 0), (1, 1)), constant_values=((0, 0), (CLS_ID, SEP_ID)))


def attention_batches(model: Any, input_ids: NDArray[np.int64]) -> Iterator[list[NDArray[np.float32]]]:
    """A transformers encoder's attention on (N, L) ids: for each batch the layers' weights (B, H, L, L).

    `ConfigError` where the model can't tell its weights; it has to be loaded with `attn_implementation="eager"`.
    """
    import torch

    config, length = model.config, input_ids.shape[1]
    if input_ids.max() >= config.vocab_size:
        raise ConfigError(f"the data have ids up to {input_ids.max()}, the model {config.vocab_size} tokens")
    heads = config.num_attention_heads * config.num_hidden_layers
    batch = max(1, ELEMENTS_AT_ONCE // (heads * length * length))
    for first in range(0, len(input_ids), batch):
        with torch.no_grad():
            found = model(input_ids=torch.from_numpy(input_ids[first : first + batch]), output_attentions=True)
        if not found.attentions:
            raise ConfigError(f"{type(model).__name__} tells no attention weights; load it with eager attention")
        yield [weights.float().cpu().numpy() for weights in found.attentions]
