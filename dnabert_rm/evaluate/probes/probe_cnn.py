"""Baseline of probes: a small convolutional network on one-hot DNA, trained from scratch on the CPU."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dnabert_rm.evaluate.probes.probe_data import Division, ProbeSet, Rows
from dnabert_rm.evaluate.probes.probe_fit import Fit
from dnabert_rm.genome import kmer

CHANNELS = 48
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
PATIENCE = 3
"""Number of epochs without a better dev score after which training stops."""
NUM_THREADS = 1
"""Fixed, because sums over threads are rounded differently. The network is too small for more: on a busy machine, two
threads that wait for each other at every layer are forty times slower than one."""


class DnaCnn(nn.Module):
    """Three convolutions, the maximum over the sequence, and a linear layer. Input: base codes (rows, bases) int64."""

    def __init__(self, num_outputs: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(4, CHANNELS, 11, padding="same"), nn.ReLU(), nn.MaxPool1d(4, ceil_mode=True),
            nn.Conv1d(CHANNELS, CHANNELS, 5, padding="same"), nn.ReLU(), nn.MaxPool1d(2, ceil_mode=True),
            nn.Conv1d(CHANNELS, CHANNELS, 5, padding="same"), nn.ReLU(), nn.AdaptiveMaxPool1d(1),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(CHANNELS, num_outputs),
        )  # fmt: skip

    def forward(self, codes: Tensor) -> Tensor:
        # A fifth column takes ambiguous bases and padding, which become zeros in all four channels.
        one_hot = functional.one_hot(codes.long(), 5)[..., :4].float()
        output: Tensor = self.layers(one_hot.transpose(1, 2))
        return output


def padded_codes(sequences: Sequence[str]) -> Tensor:
    """Return base codes 0 … 3, (rows, bases) uint8. Ambiguous bases and padding are 4."""
    codes = np.full((len(sequences), max(map(len, sequences))), kmer.AMBIGUOUS, dtype=np.uint8)
    for row, sequence in zip(codes, sequences, strict=True):
        row[: len(sequence)] = kmer.base_codes(sequence)
    return torch.from_numpy(codes)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch and fix its number of threads inside the `with` block, and restore both afterwards."""
    num_threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(NUM_THREADS)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)


def fit_cnn(data: ProbeSet, division: Division, seed: int, max_epochs: int) -> Fit:
    """Train the network, keep the epoch with the best dev score, and score it once on test.

    The same arguments give the same result on the same machine.
    """
    codes = padded_codes(data.sequences)
    targets, mean, std = torch.from_numpy(data.targets), 0.0, 1.0
    if not data.num_classes:
        mean, std = (float(value) for value in (targets[division.train].mean(), targets[division.train].std()))
        targets = ((targets - mean) / std).float()

    def predict(rows: Rows) -> NDArray:
        outputs = _outputs(model, codes[rows])
        return (outputs.argmax(dim=1) if data.num_classes else outputs[:, 0] * std + mean).numpy()

    with _seeded(seed):
        model = DnaCnn(data.num_classes or 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
        best, best_epoch, best_state, by_epoch = -np.inf, 0, model.state_dict(), []
        for epoch in range(1, max_epochs + 1):
            _train_epoch(model, optimizer, codes, targets, torch.from_numpy(division.train))
            score = data.score(division.dev, predict(division.dev))
            by_epoch.append({"epoch": epoch, "dev": score})
            if score > best:
                best, best_epoch, best_state = score, epoch, copy.deepcopy(model.state_dict())
            if epoch - best_epoch >= PATIENCE:
                break
        model.load_state_dict(best_state)
        predicted = predict(division.test)
    return Fit(best, data.score(division.test, predicted), {"epoch": best_epoch}, by_epoch)


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, codes: Tensor, targets: Tensor, rows: Tensor
) -> None:
    model.train()
    for batch in rows[torch.randperm(len(rows))].split(BATCH_SIZE):
        outputs = model(codes[batch])
        if outputs.shape[1] == 1:
            loss = functional.mse_loss(outputs[:, 0], targets[batch])
        else:
            loss = functional.cross_entropy(outputs, targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _outputs(model: nn.Module, codes: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part) for part in codes.split(256)])
