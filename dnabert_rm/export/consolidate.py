"""Consolidate the full fp32 weights of a checkpoint, one weight at a time, from the files that the ranks saved.

DeepSpeed's own conversion holds the weights in memory twice at ZeRO stages 1 and 2, and can't read stage 0. This module
memory-maps the files, so the optimizer's moments stay on disk. `read_weights` maps the files again from time to time,
because this releases the memory of the parts already read.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnabert_rm.checkpoint.checksums import read_checkpoint_manifest
from dnabert_rm.patches.deepspeed_patches import safe_torch_load
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.progress import progress_bar

MODULE_PREFIX = "model."
"""Prefix that `model.mlm.MaskedLM` adds to the weight names of the transformers model."""
REMAP_BYTES = 64_000_000
"""Bytes to read before the files are mapped again, or 1/16 of the model if larger. Concurrent readers share them."""


class SavedWeights:
    """The weights of one checkpoint, keyed by transformers name. `weights[name]` returns a new fp32 tensor.

    `shapes` maps the name of each weight to its shape. A tied weight has two names: `shapes` has only the first name,
    and `aliases` maps the second name to the first. The constructor raises `CheckpointError` if the files do not
    match the recorded ZeRO stage. It also raises `CheckpointError` for weights offloaded to disk (`zero3_nvme`),
    because DeepSpeed does not record the order of its swap files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        layout = read_checkpoint_manifest(folder).layout
        if layout.nvme and any((folder / "offloaded_tensors").rglob("*.swp")):
            raise CheckpointError(
                f"{folder}: its weights were offloaded to a disk (zero3_nvme) and can't be exported; train with "
                "zero3 or zero3_offload, which keep the optimizer in memory"
            )
        with _as_checkpoint_error(folder), safe_torch_load():
            is_stage_3 = layout.zero_stage == 3
            model = _load_mapped(folder / f"{'zero_pp_rank_0_' if is_stage_3 else ''}mp_rank_00_model_states.pt")
            # Stage 0 partitions nothing. The other stages partition all parameters, but no buffers.
            names = model["buffer_names"] if layout.zero_stage else model["module"]
            whole = {name: model["module"][name] for name in names}
            self.shapes = {_model_name(name): tensor.shape for name, tensor in whole.items()}
            self._pieces = {_model_name(name): [tensor.detach().flatten()] for name, tensor in whole.items()}
            self.aliases = _shared_memory_names(self._pieces)
            if layout.zero_stage:
                self.aliases |= {
                    _model_name(alias): _model_name(name) for alias, name in model["shared_params"].items()
                }
                groups = [
                    {_model_name(name): shape for name, shape in group.items()} for group in model["param_shapes"]
                ]
                states = [_load_mapped(path)["optimizer_state_dict"] for path in _rank_files(folder, layout.world_size)]
                self.shapes |= dict(chain.from_iterable(group.items() for group in groups))
                pieces_of = _pieces_of_stage_3 if is_stage_3 else _pieces_of_stages_1_2
                self._pieces |= pieces_of(groups, states)
        for alias in self.aliases:
            self.shapes.pop(alias, None)

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        with _as_checkpoint_error(self.folder):
            weight = _mapped_vector(shape.numel())
            return torch.cat(self._pieces[name], out=weight).view(shape)


def read_weights(folder: Path, what: str, share: int = 1, quiet: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and tensor of each weight of a checkpoint. Show a progress bar labelled `what` unless `quiet`.

    `share` is the number of concurrent calls of `read_weights`. Each call uses 1/`share` of the memory for mapped
    files.
    """
    saved = SavedWeights(folder)
    bytes_read = 0
    size = sum(4 * shape.numel() for shape in saved.shapes.values())
    limit = max(REMAP_BYTES, size // 16) // share
    with progress_bar(what, size, "byte", quiet=quiet) as bar:
        for name in list(saved.shapes):
            if bytes_read > limit:
                saved = SavedWeights(folder)
                bytes_read = 0
            weight = saved[name]
            bytes_read += weight.nbytes
            bar.update(weight.nbytes)
            yield name, weight


def mean_weights(folders: Sequence[Path]) -> dict[str, Tensor]:
    """Return the fp32 weights averaged over checkpoints. To save memory, checkpoints are read one after the other."""
    mean: dict[str, Tensor] = {}
    for number, folder in enumerate(folders):
        for name, weight in read_weights(folder, f"reading {folder.name}"):
            if number and (name not in mean or mean[name].shape != weight.shape):
                raise CheckpointError(
                    f"{folder}: weight {name} is missing or has a different shape in {folders[0].name}; "
                    "average fewer checkpoints"
                )
            # A running mean: after all updates, each checkpoint contributes equally.
            mean[name] = mean[name].lerp_(weight, 1 / (number + 1)) if number else weight
    return mean


def mean_weights_one_by_one(folders: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight's name and its mean over the checkpoints, one weight at a time.

    The self-check compares these means with the exported means from `mean_weights`. To be an independent check, this
    function computes in fp64 and does not call `mean_weights`.
    """
    readers = [
        read_weights(folder, "comparing weights", share=len(folders), quiet=number > 0)
        for number, folder in enumerate(folders)
    ]
    for named in zip(*readers, strict=True):
        names, weights = zip(*named, strict=True)
        assert len(set(names)) == 1, names
        total = weights[0].double()
        for weight in weights[1:]:
            total += weight
        yield names[0], (total / len(weights)).float()


def _mapped_vector(length: int) -> Tensor:
    """Return an fp32 vector in its own memory mapping, because malloc might not return freed memory to the system."""
    return torch.frombuffer(mmap.mmap(-1, 4 * length), dtype=torch.float32)


def _model_name(name: str) -> str:
    return name.removeprefix(MODULE_PREFIX)


def _load_mapped(path: Path) -> dict[str, Any]:
    """Load a torch file as a memory mapping, so that tensor data are read from disk only when used."""
    return torch.load(path, map_location="cpu", mmap=True)


def _rank_files(folder: Path, world_size: int) -> list[Path]:
    """Return the files of partitioned weights in rank order. Raise `ValueError` if a file is missing.

    For training in bf16, the file names start with "bf16_".
    """
    found = [next(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"), None) for rank in range(world_size)]
    if None in found:
        raise ValueError(f"the weights of rank {found.index(None)} are missing")
    return [path for path in found if path]


def _shared_memory_names(pieces: dict[str, list[Tensor]]) -> dict[str, str]:
    """Return a dict that maps the second name of each tied weight to its first name.

    `pieces` maps each name to a list of one flat tensor. Two names are tied if their tensors share memory.
    """
    first: dict[int, str] = {}
    names = {name: first.setdefault(flat.data_ptr(), name) for name, (flat,) in pieces.items() if flat.numel()}
    return {name: other for name, other in names.items() if name != other}


def _pieces_of_stages_1_2(groups: list[dict[str, torch.Size]], states: list[dict]) -> dict[str, list[Tensor]]:
    """Return, for each weight, the flat tensors to concatenate at ZeRO stages 1 and 2.

    `groups` has the weight names and shapes of each parameter group. `states` has the optimizer state of each rank. The
    weights of a parameter group are concatenated in the order of their names in `groups`, then split among the ranks.
    """
    pieces: dict[str, list[Tensor]] = {}
    paddings = states[0].get("param_alignment_paddings")
    for number, group in enumerate(groups):
        partitions = [state["single_partition_of_fp32_groups"][number] for state in states]
        start = 0
        for index, (name, shape) in enumerate(group.items()):
            pieces[name] = _slice(partitions, start, shape.numel())
            start += shape.numel() + (paddings[number][index] if paddings else 0)
    return pieces


def _pieces_of_stage_3(groups: list[dict[str, torch.Size]], states: list[dict]) -> dict[str, list[Tensor]]:
    """Return, for each weight, the flat tensors to concatenate at ZeRO stage 3.

    `groups` has the weight names and shapes of each parameter group. `states` has the optimizer state of each rank.
    Each rank has an equal part of each weight, and the last part is padded.
    """
    pieces: dict[str, list[Tensor]] = {}
    start = 0
    for name, shape in chain.from_iterable(group.items() for group in groups):
        part_size = -(-shape.numel() // len(states))
        remaining = shape.numel()
        pieces[name] = []
        for state in states:
            pieces[name] += _slice(state["fp32_flat_groups"], start, min(part_size, remaining))
            remaining -= min(part_size, remaining)
        start += part_size
    return pieces


def _slice(vectors: Sequence[Tensor], start: int, length: int) -> list[Tensor]:
    """Return elements `start` … `start + length - 1` of the concatenation of `vectors`, as a list of views.

    Raises `ValueError` if the vectors have fewer elements.
    """
    found = []
    for vector in vectors:
        if length and start < len(vector):
            found.append(vector.detach()[start : start + length])
            length -= len(found[-1])
        start = max(0, start - len(vector))
    if length:
        raise ValueError(f"{length} elements of a weight are missing")
    return found


@contextlib.contextmanager
def _as_checkpoint_error(folder: Path) -> Iterator[None]:
    """Convert errors caused by unexpected file contents into a `CheckpointError`."""
    try:
        yield
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: its weights cannot be consolidated ({type(error).__name__}: {reason}); use another checkpoint"
        ) from None
