"""Attention of an encoder: input windows, attention weights, and statistics of these weights per layer.

Shapes: N windows, B windows per batch, H heads, L tokens per window including [CLS] and [SEP].
"""

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
"""Number of most attended tokens for the concentration measures."""
MAX_BATCH_WEIGHTS = 1 << 27
"""Maximum number of attention weights in one batch: half a gigabyte in fp32."""


def windows_of_data(
    path: str, *, split: str | None, window: int, num_windows: int, overlapping: bool, seed: int
) -> tuple[NDArray[np.int64], str, int | None]:
    """Read up to `num_windows` unmasked windows of the forward strand from the prepared data in the folder `path`.

    Return the token ids, the name of the split, and k (None for BPE). The ids have one row per window and `window`
    columns, including [CLS] and [SEP]. The default split is val, or train if there is no val. Raise `ConfigError` if
    the folder does not have the requested split.
    """
    manifest = prepared_folder(path, StorageSettings()).manifest()
    splits = {shard.split for shard in manifest.shards}
    chosen = split or ("val" if "val" in splits else "train")
    if chosen not in splits:
        raise ConfigError(f"--split {chosen}: {path} has {', '.join(sorted(splits))}; choose one of these")
    dataset = WindowDataset([path], [], WindowSettings(split=chosen, window=window, overlap=overlapping), seed)
    samples = np.arange(min(num_windows, dataset.num_windows))
    return with_ends(dataset.windows(samples, 0).ids), chosen, manifest.tokenizer.k


def windows_of_records(
    records: Iterable[tuple[str, Iterable[bytes]]],
    source: str,
    k: int,
    *,
    window: int,
    num_windows: int,
    overlapping: bool,
) -> NDArray[np.int64]:
    """Cut FASTA records into windows that do not overlap, and return the token ids of up to `num_windows` windows.

    The ids have one row per window and `window` columns, including [CLS] and [SEP]. Each record is a name and the
    blocks of its sequence. Windows with ambiguous letters such as N are skipped. An incomplete window at the end of a
    record is skipped too. Raise `DataError` if no window is left. `source` is the file name for the error message.
    """
    stride = 1 if overlapping else k
    num_bases = (window - 3) * stride + k  # bases that the window's tokens cover
    pieces = (piece for _, blocks in records for piece in _pieces(blocks, num_bases))
    valid = (ids for piece in pieces if UNK_ID not in (ids := encode(piece, k)[::stride]))
    windows = list(itertools.islice(valid, num_windows))
    if not windows:
        raise DataError(f"{source}: no window of {num_bases} bases with only A, C, G, T; lower --window (now {window})")
    return with_ends(np.stack(windows))


def _pieces(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield consecutive substrings of `size` letters from a sequence stored as blocks. Drop a shorter remainder."""
    buffer = b""
    for block in blocks:
        buffer += block
        end = len(buffer) // size * size
        yield from (buffer[start : start + size] for start in range(0, end, size))
        buffer = buffer[end:]


def with_ends(ids: NDArray) -> NDArray[np.int64]:
    """Return token ids with [CLS] before and [SEP] after each row. The shape (N, T) becomes (N, T + 2)."""
    return np.pad(ids.astype(np.int64), ((0, 0), (1, 1)), constant_values=((0, 0), (CLS_ID, SEP_ID)))


def attention_batches(model: Any, input_ids: NDArray[np.int64]) -> Iterator[list[NDArray[np.float32]]]:
    """Run a transformers encoder on N windows of L token ids, and yield the attention weights of each batch.

    `input_ids` has shape (N, L). A batch has one array per layer, of shape (B, H, L, L) for B windows and H heads.
    Raise `ConfigError` if an id is outside the model's vocabulary, or if the model returns no attention weights. Only
    a model loaded with `attn_implementation="eager"` returns attention weights.
    """
    import torch

    config, length = model.config, input_ids.shape[1]
    if input_ids.max() >= config.vocab_size:
        raise ConfigError(
            f"the data have token ids up to {input_ids.max()}, but the model has {config.vocab_size} tokens; "
            "use data with the model's k"
        )
    num_heads = config.num_attention_heads * config.num_hidden_layers
    batch_size = max(1, MAX_BATCH_WEIGHTS // (num_heads * length * length))
    for first in range(0, len(input_ids), batch_size):
        with torch.no_grad():
            outputs = model(input_ids=torch.from_numpy(input_ids[first : first + batch_size]), output_attentions=True)
        if not outputs.attentions:
            raise ConfigError(
                f'{type(model).__name__} returns no attention weights; load it with attn_implementation="eager"'
            )
        yield [weights.float().cpu().numpy() for weights in outputs.attentions]


@dataclass(frozen=True)
class LayerAttention:
    """Attention statistics of one layer with H heads, averaged over windows of L tokens. L includes [CLS] and [SEP]."""

    entropy: NDArray[np.float64]
    """(H,) entropy of a query's weights in nats, mean over queries and windows. It is log L for uniform attention."""
    cls_entropy: NDArray[np.float64]
    """(H,) entropy of the weights of the query [CLS] in nats, mean over windows."""
    top_mass: NDArray[np.float64]
    """(H,) sum of a query's 5 largest weights, mean over queries and windows."""
    top_mass_of_window: NDArray[np.float64]
    """(H,) share of all attention that goes to a window's 5 most attended tokens, mean over windows."""
    mean_map: NDArray[np.float64]
    """(L, L) weight of each query (row) for each key (column), mean over heads and windows."""
    cls_map: NDArray[np.float64]
    """(H, L) weight of the query [CLS] for each key, mean over windows."""


class AttentionSums:
    """Running sums of attention statistics over windows. Only one batch is in memory at a time."""

    def __init__(self) -> None:
        self.num_windows = 0
        self._sums: list[dict[str, NDArray[np.float64]]] = []

    def add(self, attentions: Sequence[NDArray]) -> None:
        """Add a batch of attention weights: one (B, H, L, L) array per layer for B windows, H heads and L tokens.

        The weights of each query sum to 1 over the last axis. L must be the same in every batch.
        """
        batch_sums = [_layer_sums(np.asarray(weights, dtype=np.float32)) for weights in attentions]
        if not self._sums:
            self._sums = batch_sums
        else:
            for sums, new in zip(self._sums, batch_sums, strict=True):
                for name, values in new.items():
                    sums[name] += values
        self.num_windows += len(attentions[0])

    def layers(self) -> list[LayerAttention]:
        """Return the attention statistics of each layer, averaged over all added windows."""
        assert self.num_windows, "no windows were added"
        return [
            LayerAttention(**{name: values / self.num_windows for name, values in sums.items()}) for sums in self._sums
        ]


def summarize(batches: Iterable[Sequence[NDArray]]) -> list[LayerAttention]:
    """Return the attention statistics of each layer, averaged over the batches from `attention_batches`."""
    sums = AttentionSums()
    for attentions in batches:
        sums.add(attentions)
    return sums.layers()


def _layer_sums(weights: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Return one layer's statistics, summed over a batch of windows and keyed by field of `LayerAttention`."""
    top = min(TOP, weights.shape[-1])
    received = weights.mean(axis=2)  # (B, H, L): each key's share of all queries' attention
    by_query = entropy(weights)  # (B, H, L)
    return {
        "entropy": by_query.mean(axis=-1).sum(axis=0, dtype=np.float64),
        "cls_entropy": by_query[:, :, 0].sum(axis=0, dtype=np.float64),
        "top_mass": _sum_largest(weights, top).mean(axis=-1).sum(axis=0, dtype=np.float64),
        "top_mass_of_window": _sum_largest(received, top).sum(axis=0, dtype=np.float64),
        "mean_map": weights.mean(axis=1).sum(axis=0, dtype=np.float64),
        "cls_map": weights[:, :, 0].sum(axis=0, dtype=np.float64),
    }


def entropy(weights: NDArray) -> NDArray:
    """Return the Shannon entropy, in nats, of probabilities along the last axis. Zeros contribute 0."""
    return -(weights * np.log(np.where(weights > 0, weights, 1))).sum(axis=-1)


def _sum_largest(weights: NDArray, count: int) -> NDArray:
    """Return the sum of the `count` largest values along the last axis."""
    return np.partition(weights, -count, axis=-1)[..., -count:].sum(axis=-1)


def attention_record(layers: Sequence[LayerAttention]) -> list[dict[str, Any]]:
    """Return the statistics for `attention.json`: one dict per layer, with means over heads and values per head."""
    max_entropy = math.log(layers[0].mean_map.shape[0])
    return [
        {
            "layer": number,
            "entropy": float(layer.entropy.mean()),
            "entropy_share": float(layer.entropy.mean() / max_entropy),
            "top5_mass": float(layer.top_mass.mean()),
            "top5_mass_of_window": float(layer.top_mass_of_window.mean()),
            "cls_entropy": float(layer.cls_entropy.mean()),
            "by_head": {
                "entropy": layer.entropy.tolist(),
                "entropy_share": (layer.entropy / max_entropy).tolist(),
                "top5_mass": layer.top_mass.tolist(),
                "top5_mass_of_window": layer.top_mass_of_window.tolist(),
                "cls_entropy": layer.cls_entropy.tolist(),
            },
        }
        for number, layer in enumerate(layers, 1)
    ]
