"""Embeddings of sequences of any length, one per sequence or one per token, streamed from file to file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from dnabert_rm.finetune.pretrained_encoder import load_tokenizer
from dnabert_rm.finetune.trained_tokens import stride_warning
from dnabert_rm.genome import kmer
from dnabert_rm.inference.embedding_files import CsvFile, NpyFile, ParquetFile, VectorFile, names_path
from dnabert_rm.inference.inference_settings import EmbeddingSettings
from dnabert_rm.inference.model_loading import load_encoder, model_inputs, open_model_folder
from dnabert_rm.inference.model_runner import BatchRunner, chunked, default_device
from dnabert_rm.inference.window_stream import (
    BATCHES_SORTED,
    RunningMean,
    Tally,
    WindowOutput,
    check_token_limits,
    group_by_region,
    make_tokenization,
    model_outputs,
)
from dnabert_rm.tokenizer import BpeTokenizer
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import atomic_outputs, check_output_file
from dnabert_rm.utils.progress import notice

ROWS_WRITTEN = 1024
"""Number of rows written at a time. In Parquet they form one row group."""


@dataclass(frozen=True)
class Embedder:
    """An encoder on its device, with the settings that turn hidden states into embeddings."""

    model: PreTrainedModel
    runner: BatchRunner
    pooling: str | None
    """mean, cls or max over the tokens of a row; None keeps all tokens."""
    layer: int | None
    both_strands: bool
    positions: int
    hidden_size: int

    def forward(self, sequences: list[bytes]) -> list[NDArray | None]:
        """Return each sequence's embedding, shape (hidden size,), or (tokens, hidden size) without pooling.

        Without pooling, `[CLS]` and `[SEP]` are excluded. The embedding is None for a sequence without a known k-mer.
        """
        forward = self._embed(sequences)
        if not self.both_strands:
            return forward
        reverse = self._embed([kmer.reverse_complement(sequence) for sequence in sequences])
        return [
            None if states is None or other is None else self._strand_mean(states, other)
            for states, other in zip(forward, reverse, strict=True)
        ]

    def _embed(self, sequences: list[bytes]) -> list[NDArray | None]:
        return self.runner.run(self.runner.tokenize(sequences), self.hidden_states, self._select)

    def _select(self, states: NDArray, num_kmers: int) -> NDArray:
        return states[1 : 1 + num_kmers] if self.pooling is None else states

    def _strand_mean(self, forward: NDArray, reverse: NDArray) -> NDArray:
        # Token i of one strand covers the same bases as the other strand's i-th token from the end.
        return (forward + (reverse[::-1] if self.pooling is None else reverse)) / 2

    def hidden_states(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Return a batch's hidden states: (rows, hidden size) if pooled, otherwise (rows, tokens, hidden size)."""
        if self.layer is None:
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        else:
            states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[self.layer]
        return states if self.pooling is None else pool(states.float(), mask, self.pooling)


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Pool hidden states (rows, tokens, hidden size) to (rows, hidden size).

    `pooling` selects the mean or maximum over the tokens between `[CLS]` and `[SEP]`, or the state of `[CLS]`.
    """
    if pooling == "cls":
        return states[:, 0]
    inner = states[:, 1:-1]
    if mask is None:
        return inner.mean(dim=1) if pooling == "mean" else inner.amax(dim=1)
    # [SEP] follows the last k-mer of a row, so a token is a k-mer exactly if another token follows it.
    is_kmer = mask[:, 2:, None].bool()
    if pooling == "max":
        return inner.masked_fill(~is_kmer, -torch.inf).amax(dim=1)
    return inner.masked_fill(~is_kmer, 0).sum(dim=1) / is_kmer.sum(dim=1)


def load_embedder(settings: EmbeddingSettings) -> Embedder:
    """Load the encoder of a pretrained or fine-tuned model. Raise `ConfigError` if `--layer` is out of range."""
    folder = open_model_folder(settings.model)
    config = folder.config
    depth = config.num_hidden_layers
    if settings.layer is not None and not -depth - 1 <= settings.layer <= depth:
        raise ConfigError(
            f"--layer {settings.layer}: the model has {depth} layers; pass 0 … {depth}, or -1 … {-depth - 1}"
        )
    tokenizer = load_tokenizer(folder.tokenizer, config, settings.overlapping)
    if settings.both_strands and isinstance(tokenizer, BpeTokenizer):
        raise ConfigError(
            "--both-strands: BPE tokens have no reverse complement; omit --both-strands, or choose a k-mer model"
        )
    if warning := stride_warning(settings.overlapping, *folder.folders):
        notice(warning)
    device = default_device()
    model = load_encoder(folder).to(device)  # type: ignore[arg-type]
    runner = BatchRunner(tokenizer, device, settings.precision, settings.batch_size)
    pooling = None if settings.per_token else settings.pooling
    return Embedder(
        model=model,
        runner=runner,
        pooling=pooling,
        layer=settings.layer,
        both_strands=settings.both_strands,
        positions=config.max_position_embeddings,
        hidden_size=config.hidden_size,
    )


def embed(settings: EmbeddingSettings) -> Tally:
    """Write the embeddings of all sequences in `input`, in input order, to a .npy, .csv or .parquet file.

    With `tile`, each sequence is cut into tiles, and each tile has its own embedding.

    A .npy file holds a float32 array of shape (embeddings, hidden size). The table `NAME.ids.csv` beside the file names
    the array's rows. With `per_token`, the array has one row per token, and the table has one line per sequence or
    tile: the name, the index of the first array row, and the number of array rows.

    Raises `ConfigError`, `CheckpointError` or `DataError`. After an error, no output file remains.
    """
    npy = settings.output.suffix == ".npy"
    output_paths = [names_path(settings.output), settings.output] if npy else [settings.output]
    for path in output_paths:
        check_output_file(path, settings.overwrite, model_inputs(settings.model, *settings.inputs))
    embedder = load_embedder(settings)
    tokenization = make_tokenization(embedder.runner.tokenizer, settings.max_tokens or embedder.positions)
    check_token_limits(settings, tokenization, embedder.positions)
    tally = Tally()
    batches_sorted = 1 if settings.per_token else BATCHES_SORTED
    outputs = model_outputs(settings, tokenization, settings.long or "window", embedder.forward, tally, batches_sorted)
    with (
        atomic_outputs(*output_paths) as temporary,
        contextlib.closing(_open(settings, temporary, embedder.hidden_size)) as file,
    ):
        if settings.per_token:
            assert isinstance(file, NpyFile)
            write_tokens(file, outputs, embedder.hidden_size, settings.region_columns, tally)
        else:
            write_pooled(file, outputs, settings, embedder.hidden_size, tally)
    return tally


def _open(settings: EmbeddingSettings, paths: Sequence[Path], width: int) -> VectorFile:
    columns = settings.region_columns
    if settings.output.suffix == ".npy":
        extra = ["first_row", "rows"] if settings.per_token else []
        return NpyFile(paths[1], paths[0], [*columns, *extra], width)
    return (CsvFile if settings.output.suffix == ".csv" else ParquetFile)(paths[0], columns, width)


def write_pooled(
    file: VectorFile, outputs: Iterable[WindowOutput], settings: EmbeddingSettings, width: int, tally: Tally
) -> None:
    """Write one embedding per sequence or tile. The embedding is NaN if the sequence or tile has no known k-mer."""
    join = partial(join_windows, pooling=settings.pooling)
    joined = ((region, join(windows)) for region, windows in group_by_region(outputs))
    for rows in chunked(joined, ROWS_WRITTEN):
        vectors = np.array([np.full(width, np.nan) if vector is None else vector for _, vector in rows], np.float32)
        file.write([region.cells(settings.region_columns) for region, _ in rows], vectors)
        tally.rows += len(rows)
        tally.empty += sum(vector is None for _, vector in rows)


def join_windows(outputs: Iterable[WindowOutput], pooling: str) -> NDArray | None:
    """Join the embeddings of all windows of a sequence or tile into one embedding, shape (hidden size,).

    With "max" pooling, the result is the maximum over the windows. With other pooling, it is the mean over the windows.
    If no window has an embedding, the result is None. The mean needs no weights, because all windows of a sequence have
    the same number of tokens.
    """
    num_windows = 0
    total: NDArray | None = None
    join = np.maximum if pooling == "max" else np.add
    for _, vector in outputs:
        if vector is not None:
            num_windows += 1
            total = vector.astype(np.float64) if total is None else join(total, vector)
    return total if total is None or pooling == "max" else total / num_windows


def write_tokens(
    file: NpyFile,
    outputs: Iterable[WindowOutput],
    width: int,
    columns: list[str],
    tally: Tally,
) -> None:
    """Write one embedding per token of each sequence or tile, averaged over the windows that contain the token."""
    for region, windows in group_by_region(outputs):
        first_row = file.num_rows
        means = RunningMean(width)
        is_empty = True
        for window, states in windows:
            file.write([], means.pop(window.first_token))
            means.extend(window.first_token, window.first_token + window.num_tokens)
            if states is not None:
                means.add(window.first_token, states)
                is_empty = False
        file.write([], means.pop())
        names = [*region.cells(columns), first_row, file.num_rows - first_row]
        file.write([names], np.empty((0, width), np.float32))
        tally.rows += 1
        tally.empty += is_empty
