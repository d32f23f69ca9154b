"""Predictions of a fine-tuned model for sequences of any length, streamed from file to table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from dnabert_rm.finetune.finetune_settings import FINETUNING_FILE
from dnabert_rm.finetune.pretrained_encoder import load_tokenizer
from dnabert_rm.inference.inference_settings import PredictSettings
from dnabert_rm.inference.model_loading import load_adapted, load_model, model_inputs, open_model_folder
from dnabert_rm.inference.model_runner import BatchRunner, default_device
from dnabert_rm.inference.output_files import open_text
from dnabert_rm.inference.prediction_files import open_prediction_file
from dnabert_rm.inference.prediction_head import Head, read_head
from dnabert_rm.inference.sequence_input import AnyTokenization, Region
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
from dnabert_rm.model.pretrained import NAME_FINETUNED
from dnabert_rm.tokenizer import BpeTokenizer
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import atomic_outputs, check_output_file

Row = tuple[list[Any], list[str]]
"""Values of the name columns, and of the prediction columns."""


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned model on its device."""

    head: Head
    model: torch.nn.Module
    runner: BatchRunner
    positions: int

    def forward(self, sequences: list[bytes]) -> list[NDArray | None]:
        """Return each sequence's logits, shape (labels,), or None for a sequence without a known token.

        If the model classifies bases, the shape is (k-mers, labels) with k-mers, and (bases, labels) with BPE.
        """
        per_base = self.head.per_base
        tokenizer = self.runner.tokenizer
        outputs = self.runner.run(
            self.runner.tokenize(sequences),
            lambda ids, mask: self.model(input_ids=ids, attention_mask=mask).logits,
            lambda logits, num_tokens: logits[1 : 1 + num_tokens] if per_base else logits,
        )
        if not (per_base and isinstance(tokenizer, BpeTokenizer)):
            return outputs
        return [
            None if logits is None else repeat_for_bases(logits, tokenizer.token_ranges(sequence.decode("ascii")))
            for sequence, logits in zip(sequences, outputs, strict=True)
        ]


def repeat_for_bases(logits: NDArray, token_ranges: NDArray[np.int64]) -> NDArray:
    """Repeat the logits of each token for every base of the token: (tokens, labels) becomes (bases, labels).

    `token_ranges` holds the half-open base range of each token, shape (tokens, 2). Ranges must be adjacent.
    """
    return np.repeat(logits, token_ranges[:, 1] - token_ranges[:, 0], axis=0)


def load_predictor(folder: Path, batch_size: int, precision: str) -> Predictor:
    """Load a fine-tuned model or LoRA adapters. Raise `CheckpointError` if `folder` holds neither."""
    source = open_model_folder(folder, NAME_FINETUNED)
    config = source.config
    head = read_head(source)
    if source.base is not None:
        config.id2label = dict(enumerate(head.labels))
    if len(head.labels) != config.num_labels:
        raise CheckpointError(
            f"{folder / FINETUNING_FILE}: has {len(head.labels)} labels, but the model has {config.num_labels} "
            "outputs; fine-tune again"
        )
    auto_class = AutoModelForTokenClassification if head.per_base else AutoModelForSequenceClassification
    if source.base is None:
        model: torch.nn.Module = load_model(auto_class, folder, config)
    else:
        model = load_adapted(auto_class, folder, source.base, config)
    tokenizer = load_tokenizer(source.tokenizer, config, head.overlapping)
    device = default_device()
    runner = BatchRunner(tokenizer, device, precision, batch_size)
    return Predictor(head, model.to(device), runner, config.max_position_embeddings)


def predict(settings: PredictSettings) -> Tally:
    """Write predictions for each sequence in `input`, or each interval in `regions`, to `output`, in their order.

    With `tile`, each sequence is cut into tiles, and each tile has its own prediction. A head that classifies bases
    reads intervals from the forward strand, and names each base by its position in the contig. Raises `ConfigError`,
    `CheckpointError`, or `DataError` with the line number. After an error, no output file remains.
    """
    check_output_file(settings.output, settings.overwrite, model_inputs(settings.model, *settings.inputs))
    predictor = load_predictor(settings.model, settings.batch_size, settings.precision)
    head = predictor.head
    max_tokens = settings.max_tokens or head.max_tokens or predictor.positions
    tokenization = make_tokenization(predictor.runner.tokenizer, max_tokens)
    check_token_limits(settings, tokenization, predictor.positions)
    tally = Tally()
    outputs = model_outputs(
        settings,
        tokenization,
        settings.long or head.long,
        predictor.forward,
        tally,
        # Per-base logits are large, so hold one batch at a time. Other outputs are a few numbers per window.
        batches_sorted=1 if head.per_base else BATCHES_SORTED,
        forward_only=head.per_base,
    )
    columns = [settings.region_columns[0], "position"] if head.per_base else settings.region_columns
    rows = base_rows(head, tokenization, outputs) if head.per_base else region_rows(head, outputs, columns)
    with (
        atomic_outputs(settings.output) as (temporary,),
        open_text(temporary, settings.output) as stream,
    ):
        file = open_prediction_file(settings.output, stream, columns, head, settings.track)
        for place, cells in rows:
            file.write(place, cells)
            tally.rows += 1
            tally.empty += not cells[-1]
    return tally


def region_rows(head: Head, outputs: Iterable[WindowOutput], columns: list[str]) -> Iterator[Row]:
    """Yield a row per sequence, tile or interval: the values of the name columns `columns`, and prediction cells."""
    for region, logits in mean_logits(outputs):
        cells = head.cells(np.full((1, len(head.labels)), np.nan) if logits is None else logits[None])[0]
        yield region.cells(columns), cells


def mean_logits(outputs: Iterable[WindowOutput]) -> Iterator[tuple[Region, NDArray | None]]:
    """Yield each sequence or tile with the mean logits of its windows, shape (labels,).

    The logits are None if no window has an output.
    """
    for region, windows in group_by_region(outputs):
        total = np.zeros(0)
        num_windows = 0
        for _, logits in windows:
            if logits is not None:
                total = logits.astype(np.float64) if num_windows == 0 else total + logits
                num_windows += 1
        yield region, total / num_windows if num_windows else None


def base_rows(head: Head, tokenization: AnyTokenization, outputs: Iterable[WindowOutput]) -> Iterator[Row]:
    """Yield a row per base: the record's name and the 0-based position in the record, and prediction cells.

    The logits of a base are the mean over all tokens that cover the base, in all windows. The last token also predicts
    the fewer than k bases after it, as in `KmerTokenizer.token_ranges`. A base outside all windows has no row.
    """
    for region, windows in group_by_region(outputs):
        means = RunningMean(len(head.labels))
        for window, logits in windows:
            yield from _rows_from(head, region.name, means.start, means.pop(window.start))
            end = window.start + len(window.sequence)
            num_after = region.end - end if window.is_last and window.num_tokens else 0
            if num_after >= tokenization.stride:
                num_after = 0  # the window does not end with the last token
            means.extend(window.start, end + num_after)
            if logits is not None:
                means.add(window.start, logits, tokenization.stride, tokenization.k)
                if num_after:
                    means.add(end, logits[-1:], covered=num_after)
        yield from _rows_from(head, region.name, means.start, means.pop())


def _rows_from(head: Head, name: str, start: int, logits: NDArray) -> Iterable[Row]:
    return (([name, start + i], cells) for i, cells in enumerate(head.cells(logits)))
