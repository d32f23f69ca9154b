"""Windows to look at attention on, from prepared data or sequences, and a model's attention on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.folders import StorageSettings, prepared_folder
from dnabert_rm.errors import ConfigError, DataError
from dnabert_rm.kmer import CLS_ID, SEP_ID, UNK_ID, encode

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
