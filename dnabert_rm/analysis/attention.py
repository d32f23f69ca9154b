"""Where the layers attend to: entropy, mass on the most attended tokens, mean maps, what [CLS] looks at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
