"""Embeddings of sequences of any length, one a sequence or one a token, streamed from a file to a file.

Shapes: B rows, W tokens a row with specials, T without, H hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from dnabert_rm.finetune.pretrained_encoder import load_config, load_tokenizer
from dnabert_rm.genome import kmer
from dnabert_rm.inference.embedding_files import CsvFile, NpyFile, ParquetFile, VectorFile, names_path
from dnabert_rm.inference.inference_settings import EmbeddingSettings
from dnabert_rm.inference.model_runner import Runner, in_groups, load_model, take_device
from dnabert_rm.inference.sequence_input import Tokens, Unit
from dnabert_rm.inference.window_stream import Outputs, Tally, Track, allowed_tokens, group_by_unit, model_outputs
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import atomic_outputs, check_output_file

ROWS_WRITTEN = 1024
"""Rows written at a time, a row group of a Parquet file."""


@dataclass(frozen=True)
class Embedder:
    """An encoder on its device, and what is taken from it."""

    model: PreTrainedModel
    runner: Runner
    pooling: str | None
    """mean, cls or max over the tokens of a row; None for all tokens."""
    layer: int | None
    both_strands: bool

    def ask(self, sequences: list[bytes]) -> list[NDArray | None]:
        """(H,) of each sequence, or (T, H) without pooling; None where not one k-mer is known."""
        found = self._ask(sequences)
        if not self.both_strands:
            return found
        # Token i of one strand covers the bases of token T - 1 - i of the other.
        turn = (lambda states: states[::-1]) if self.pooling is None else (lambda states: states)
        other = self._ask([kmer.reverse_complement(letters) for letters in sequences])
        return [None if a is None or b is None else (a + turn(b)) / 2 for a, b in zip(found, other, strict=True)]

    def _ask(self, sequences: list[bytes]) -> list[NDArray | None]:
        return self.runner.run(self.runner.rows(sequences), self.forward, self._take)

    def _take(self, states: NDArray, num_tokens: int) -> NDArray:
        return states[1 : 1 + num_tokens] if self.pooling is None else states

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Hidden states of a batch: (B, H), or (B, W, H) without pooling."""
        if self.layer is None:
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        else:
            states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[self.layer]
        return states if self.pooling is None else pool(states.float(), mask, self.pooling)


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """(B, W, H) → (B, H): the mean or maximum over tokens without `[CLS]`, `[SEP]` and padding, or `[CLS]`'s state."""
    if pooling == "cls":
        return states[:, 0]
    inner = states[:, 1:-1]
    if mask is None:
        return inner.mean(dim=1) if pooling == "mean" else inner.amax(dim=1)
    # The token after the last k-mer of a row is [SEP], so a k-mer is what has another token after it.
    is_kmer = mask[:, 2:, None].bool()
    if pooling == "max":
        return inner.masked_fill(~is_kmer, -torch.inf).amax(dim=1)
    return inner.masked_fill(~is_kmer, 0).sum(dim=1) / is_kmer.sum(dim=1)


def load_embedder(settings: EmbeddingSettings) -> tuple[Embedder, int, int]:
    """The encoder of a pretrained or fine-tuned model, its positions and its hidden size."""
    config = load_config(settings.model)
    depth = config.num_hidden_layers
    if settings.layer is not None and not -depth - 1 <= settings.layer <= depth:
        raise ConfigError(
            f"--layer {settings.layer}: the model has {depth} layers; pass 0 … {depth}, or -1 … {-depth - 1}"
        )
    tokenizer = load_tokenizer(settings.model, config, settings.overlapping)
    device = take_device()
    model = load_model(AutoModel, settings.model, config, may_lack="pooler.").to(device)  # type: ignore[arg-type]
    runner = Runner(tokenizer, device, settings.precision, settings.batch_size)
    pooling = None if settings.per_token else settings.pooling
    embedder = Embedder(model, runner, pooling, settings.layer, settings.both_strands)
    return embedder, config.max_position_embeddings, config.hidden_size


def embed(settings: EmbeddingSettings) -> Tally:
    """Write the embedding of each record or tile of `input`, in order, to `output`: .npy, .csv or .parquet.

    Beside a .npy (N, H) float32 lies `NAME.ids.csv`, a line for each of its rows; with `per_token` a line for each
    sequence, with the number of its first row and of its rows. Raises `ConfigError`, `CheckpointError`, `DataError`;
    then no output is left.
    """
    npy = settings.output.suffix == ".npy"
    outputs = [names_path(settings.output), settings.output] if npy else [settings.output]
    for path in outputs:
        check_output_file(path, settings.overwrite)
    embedder, positions, hidden_size = load_embedder(settings)
    tokenizer = embedder.runner.tokenizer
    tokens = Tokens(tokenizer.k, tokenizer.step, (settings.max_tokens or positions) - 2)
    allowed_tokens(settings, tokens, positions)
    tally = Tally()
    num_sorted = {"num_sorted": 1} if settings.per_token else {}
    answers = model_outputs(settings, tokens, settings.long or "window", embedder.ask, tally, **num_sorted)
    with atomic_outputs(*outputs) as asides, contextlib.closing(_open(settings, asides, hidden_size)) as out:
        if settings.per_token:
            assert isinstance(out, NpyFile)
            write_tokens(out, answers, tokens, hidden_size, settings.tile is not None, tally)
        else:
            write_pooled(out, answers, settings, hidden_size, tally)
    return tally


def _open(settings: EmbeddingSettings, asides: Sequence[Path], width: int) -> VectorFile:
    columns = ["id"] if settings.tile is None else ["contig", "start", "end"]
    if settings.output.suffix == ".npy":
        extra = ["first_row", "rows"] if settings.per_token else []
        return NpyFile(asides[1], asides[0], [*columns, *extra], width)
    return (CsvFile if settings.output.suffix == ".csv" else ParquetFile)(asides[0], columns, width)


def _name(unit: Unit, with_place: bool) -> list[Any]:
    return [unit.name, unit.start, unit.end] if with_place else [unit.name]


def write_pooled(out: VectorFile, answers: Outputs, settings: EmbeddingSettings, width: int, tally: Tally) -> None:
    """One row a unit; NaN where there is no known k-mer."""
    join = partial(joined, pooling=settings.pooling)
    for rows in in_groups(map(join, group_by_unit(answers)), ROWS_WRITTEN):
        vectors = np.array([np.full(width, np.nan) if vector is None else vector for _, vector in rows], np.float32)
        out.write([_name(unit, settings.tile is not None) for unit, _ in rows], vectors)
        tally.rows += len(rows)
        tally.empty += sum(vector is None for _, vector in rows)


def joined(parts: Outputs, pooling: str) -> tuple[Unit, NDArray | None]:
    """A unit and the embedding (H,) from those of its windows, which are all of one length.

    The maximum is that of all windows; else the mean.
    """
    vectors = 0
    total: NDArray | None = None
    for window, vector in parts:
        unit = window.unit
        if vector is not None:
            vectors += 1
            join = np.maximum if pooling == "max" else np.add
            total = vector.astype(np.float64) if total is None else join(total, vector)
    return unit, total if total is None or pooling == "max" else total / vectors


def write_tokens(out: NpyFile, answers: Outputs, tokens: Tokens, width: int, with_place: bool, tally: Tally) -> None:
    """A row for each token of each unit; where windows overlap, the mean of theirs."""
    for parts in group_by_unit(answers):
        first, track, seen = out.num_rows, Track(width), False
        for window, states in parts:
            at = (window.start - window.unit.start) // tokens.step
            out.write([], track.take(at))
            track.cover(at, at + tokens.count(len(window.letters)))
            if states is not None:
                track.add(at, states)
                seen = True
        out.write([], track.take())
        out.write([[*_name(window.unit, with_place), first, out.num_rows - first]], np.empty((0, width), np.float32))
        tally.rows += 1
        tally.empty += not seen
