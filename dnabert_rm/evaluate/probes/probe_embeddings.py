"""Embeddings of whole tables by all layers of a frozen model, in one forward pass, cached on disk."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from dnabert_rm.evaluate.probes.probe_data import ProbeSet
from dnabert_rm.evaluate.probes.probe_settings import ProbeSettings
from dnabert_rm.finetune.fingerprints import hash_model
from dnabert_rm.finetune.lora import ADAPTER_CONFIG
from dnabert_rm.finetune.pretrained_encoder import load_tokenizer
from dnabert_rm.finetune.trained_tokens import stride_warning
from dnabert_rm.inference.embed_sequences import join_windows, pool
from dnabert_rm.inference.model_loading import ADAPTER_WEIGHTS, ModelFolder, load_encoder, open_model_folder
from dnabert_rm.inference.model_runner import BatchRunner, chunked, default_device
from dnabert_rm.inference.sequence_input import AnyTokenization, Region, Window, cut_windows
from dnabert_rm.inference.window_stream import BATCHES_SORTED, group_by_region, make_tokenization
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import atomic_outputs, sha256_of_file
from dnabert_rm.utils.progress import notice, progress_bar


@dataclass(frozen=True)
class SetEmbeddings:
    """Embeddings of all rows of a data set."""

    by_pooling: dict[str, list[NDArray[np.float32]]]
    """For each pooling, one array (hidden states, rows, hidden size) per file. The arrays are mapped from disk."""
    seconds: float
    """Seconds for the forward passes of this call."""
    from_cache: bool
    """Whether no forward pass was needed."""

    def features(self, pooling: str, layer: int) -> NDArray[np.float32]:
        """Return one hidden state of all rows, (rows, hidden size)."""
        return np.concatenate([array[layer] for array in self.by_pooling[pooling]])


@dataclass(frozen=True)
class TableEmbedder:
    """A frozen model, its layers to try, and the cache of its embeddings."""

    folder: ModelFolder
    layers: tuple[int, ...]
    """Hidden states to try, 0 … number of layers, in ascending order."""
    settings: ProbeSettings
    model_sha256: str

    @cached_property
    def runner(self) -> BatchRunner:
        """The tokenizer and batching of forward passes."""
        tokenizer = load_tokenizer(self.folder.tokenizer, self.folder.config, self.settings.overlapping)
        settings = self.settings
        name = str(self.folder.path)
        return BatchRunner(tokenizer, default_device(), settings.precision, settings.batch_size, name)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The encoder on its device; loaded only if embeddings are missing from the cache."""
        model: PreTrainedModel = load_encoder(self.folder).to(default_device())  # type: ignore[arg-type]
        return model

    def embed(self, data_set: ProbeSet) -> SetEmbeddings:
        """Return the embeddings of all rows, from the cache if they are there, otherwise computed and cached."""
        start = time.monotonic()
        computed = False
        by_pooling: dict[str, list[NDArray]] = {pooling: [] for pooling in self.settings.pooling}
        sequences = iter(data_set.sequences)
        for path, num_rows in zip(data_set.files, data_set.row_counts, strict=True):
            table = list(itertools.islice(sequences, num_rows))
            files = [self._cache_file(path, pooling) for pooling in self.settings.pooling]
            if not all(file.is_file() for file in files):
                self._embed_table(f"{data_set.name}/{path.name}", table, files)
                computed = True
            for pooling, file in zip(self.settings.pooling, files, strict=True):
                by_pooling[pooling].append(np.load(file, mmap_mode="r"))
        return SetEmbeddings(by_pooling, time.monotonic() - start if computed else 0.0, not computed)

    def _cache_file(self, table: Path, pooling: str) -> Path:
        settings = self.settings
        words = (self.model_sha256, sha256_of_file(table), pooling, settings.precision, settings.overlapping)
        return settings.output / "cache" / f"{hashlib.sha256(repr(words).encode()).hexdigest()[:32]}.npy"

    def _embed_table(self, title: str, sequences: Sequence[str], files: Sequence[Path]) -> None:
        """Write the embeddings of a table to `files`, one (hidden states, rows, hidden size) array per pooling."""
        config = self.folder.config
        shape = (config.num_hidden_layers + 1, len(sequences), config.hidden_size)
        files[0].parent.mkdir(parents=True, exist_ok=True)
        with atomic_outputs(*files) as temporary, progress_bar(title, len(sequences), "row") as bar:
            arrays = [np.lib.format.open_memmap(path, "w+", np.float32, shape) for path in temporary]
            for row, states in enumerate(self._rows(sequences)):
                for array, state in zip(arrays, states, strict=True):
                    array[:, row] = state
                bar.update()
            for array in arrays:
                array.flush()

    def _rows(self, sequences: Sequence[str]) -> Iterator[NDArray]:
        """Yield each sequence's embeddings, (poolings, hidden states, hidden size).

        A sequence longer than the model's input is cut into overlapping windows, whose embeddings are averaged. The
        embedding of a sequence without a known k-mer is 0.
        """
        config = self.folder.config
        tokenization = make_tokenization(self.runner.tokenizer, config.max_position_embeddings)
        empty = np.zeros((len(self.settings.pooling), config.num_hidden_layers + 1, config.hidden_size))
        groups = chunked(_windows(sequences, tokenization), self.settings.batch_size * BATCHES_SORTED)
        outputs = (
            output
            for group in groups
            for output in zip(group, self._forward([window.sequence for window in group]), strict=True)
        )
        for _, windows in group_by_region(outputs):
            states = join_windows(windows, "mean")
            yield empty if states is None else states

    def _forward(self, sequences: list[bytes]) -> list[NDArray | None]:
        return self.runner.run(self.runner.tokenize(sequences), self._pooled_states, lambda states, _: states)

    def _pooled_states(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Return the pooled hidden states of a batch, (rows, poolings, hidden states, hidden size)."""
        states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        poolings = self.settings.pooling
        return torch.stack(
            [torch.stack([pool(state.float(), mask, name) for state in states], dim=1) for name in poolings], dim=1
        )


def _windows(sequences: Sequence[str], tokenization: AnyTokenization) -> Iterator[Window]:
    for row, sequence in enumerate(sequences):
        yield from cut_windows(Region(str(row)), iter([sequence.encode()]), tokenization, "window")


def open_embedder(path: Path, settings: ProbeSettings) -> TableEmbedder:
    """Check a model folder and `--layers`, without loading weights. Raise `CheckpointError` or `ConfigError`."""
    folder = open_model_folder(path)
    depth = folder.config.num_hidden_layers
    for layer in settings.layers:
        if not -depth - 1 <= layer <= depth:
            raise ConfigError(f"--layers {layer}: {path} has {depth} layers; pass numbers from 0 to {depth}, or all")
    layers = sorted({layer % (depth + 1) for layer in settings.layers}) or range(depth + 1)
    load_tokenizer(folder.tokenizer, folder.config, settings.overlapping)
    if warning := stride_warning(settings.overlapping, *folder.folders):
        notice(warning)
    return TableEmbedder(folder, tuple(layers), settings, _fingerprint(folder))


def _fingerprint(folder: ModelFolder) -> str:
    """Return a SHA-256 of the files that determine a model's embeddings, LoRA adapters included."""
    if folder.base is None:
        return hash_model(folder.path)
    adapters = [sha256_of_file(folder.path / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    return hashlib.sha256("".join([hash_model(folder.base), *adapters]).encode()).hexdigest()
