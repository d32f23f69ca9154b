"""The full fp32 weights of a checkpoint, put together one at a time from what the ranks saved.

DeepSpeed's own merging holds the weights twice below stage 3, and can't read stage 0. Here the files are mapped into
memory, so that the optimizer's moments stay on disk, and mapped anew now and then, so that what was read goes again.
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
"""Where `model.mlm.MaskedLM` keeps the transformers model."""
REMAP_BYTES = 64_000_000
"""So much is read of all checkpoints together before their files are mapped anew, or a sixteenth of a large one."""


class SavedWeights:
    """One checkpoint's weights by transformers' names: `weights[name]` is a new fp32 tensor.

    `shapes` holds the shape of each weight, `aliases` the second names of tied ones: {alias: name}. `CheckpointError`
    where the files are not those of a checkpoint of the ZeRO stage that its record says, or the weights were left on a
    disk (`zero3_nvme`): DeepSpeed then writes them in files of its swapping, whose order it does not record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, layout = folder, read_checkpoint_manifest(folder).layout
        if layout.nvme and any((folder / "offloaded_tensors").rglob("*.swp")):
            raise CheckpointError(
                f"{folder}: its weights were offloaded to a disk (zero3_nvme) and can't be exported; train with the "
                "optimizer in memory (zero3, zero3_offload) where an export is wanted"
            )
        with _one_line(folder), safe_torch_load():
            by_rank = layout.zero_stage == 3
            model = _mapped(folder / f"{'zero_pp_rank_0_' if by_rank else ''}mp_rank_00_model_states.pt")
            # Stage 0 partitions nothing, the others all but buffers.
            names = model["buffer_names"] if layout.zero_stage else model["module"]
            whole = {name: model["module"][name] for name in names}
            self.shapes = {_name(name): tensor.shape for name, tensor in whole.items()}
            self._pieces = {_name(name): [tensor.detach().flatten()] for name, tensor in whole.items()}
            self.aliases = _same_memory(self._pieces)
            if layout.zero_stage:
                self.aliases |= {_name(alias): _name(name) for alias, name in model["shared_params"].items()}
                groups = [{_name(name): shape for name, shape in group.items()} for group in model["param_shapes"]]
                states = [_mapped(path)["optimizer_state_dict"] for path in _rank_files(folder, layout.world_size)]
                self.shapes |= dict(chain.from_iterable(group.items() for group in groups))
                self._pieces |= _pieces_of_stage_3(groups, states) if by_rank else _pieces_of_stages_1_2(groups, states)
        for alias in self.aliases:
            self.shapes.pop(alias, None)

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        with _one_line(self.folder):
            weight = _own_memory(shape.numel())
            return torch.cat(self._pieces[name], out=weight).view(shape)


def read_weights(folder: Path, what: str, share: int = 1, quiet: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of a checkpoint, each of them once; `share` checkpoints are read at the same time.

    A bar calls it `what`; `quiet` shows none.
    """
    saved, read = SavedWeights(folder), 0
    size = sum(4 * shape.numel() for shape in saved.shapes.values())
    limit = max(REMAP_BYTES, size // 16) // share
    with progress_bar(what, size, "byte", quiet=quiet) as bar:
        for name in list(saved.shapes):
            if read > limit:
                saved, read = SavedWeights(folder), 0
            weight = saved[name]
            read += weight.nbytes
            bar.update(weight.nbytes)
            yield name, weight


def mean_weights(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of checkpoints' weights, fp32, one checkpoint after another: memory for the weights once."""
    mean: dict[str, Tensor] = {}
    for number, folder in enumerate(folders):
        for name, weight in read_weights(folder, f"reading {folder.name}"):
            if number and (name not in mean or mean[name].shape != weight.shape):
                raise CheckpointError(f"{folder}: has another {name} than {folders[0].name}; average fewer checkpoints")
            # The weight's share of the mean so far: after all of them, each has counted the same.
            mean[name] = mean[name].lerp_(weight, 1 / (number + 1)) if number else weight
    return mean


def mean_weights_one_by_one(folders: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """The same mean by another way, to check it by: weight after weight, summed in fp64 over the checkpoints."""
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


def _own_memory(length: int) -> Tensor:
    """An fp32 vector whose memory goes back to the system with it; malloc would keep much of what it gave."""
    return torch.frombuffer(mmap.mmap(-1, 4 * length), dtype=torch.float32)


def _name(name: str) -> str:
    return name.removeprefix(MODULE_PREFIX)


def _mapped(path: Path) -> dict[str, Any]:
    """A file of torch's without its tensors' data, which are read from disk where they are used."""
    return torch.load(path, map_location="cpu", mmap=True)


def _rank_files(folder: Path, world_size: int) -> list[Path]:
    """Each rank's file of partitioned weights, in the order of ranks; DeepSpeed puts "bf16_" before those of bf16."""
    found = [next(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"), None) for rank in range(world_size)]
    if None in found:
        raise ValueError(f"rank {found.index(None)}'s file of weights is missing")
    return [path for path in found if path]


def _same_memory(pieces: dict[str, list[Tensor]]) -> dict[str, str]:
    """Names whose tensor is another's: {name: the first name}."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(flat.data_ptr(), name) for name, (flat,) in pieces.items() if flat.numel()}
    return {name: other for name, other in names.items() if name != other}


def _pieces_of_stages_1_2(groups: list[dict[str, torch.Size]], states: list[dict]) -> dict[str, list[Tensor]]:
    """Stages 1 and 2: the ranks' partitions of a group, end to end, are its weights one after another."""
    pieces: dict[str, list[Tensor]] = {}
    paddings = states[0].get("param_alignment_paddings")
    for number, group in enumerate(groups):
        partitions, start = [state["single_partition_of_fp32_groups"][number] for state in states], 0
        for place, (name, shape) in enumerate(group.items()):
            pieces[name] = _cut(partitions, start, shape.numel())
            start += shape.numel() + (paddings[number][place] if paddings else 0)
    return pieces


def _pieces_of_stage_3(groups: list[dict[str, torch.Size]], states: list[dict]) -> dict[str, list[Tensor]]:
    """Stage 3: each rank has an equal part of every weight, one weight after another, the last part filled up."""
    pieces: dict[str, list[Tensor]] = {}
    start = 0
    for name, shape in chain.from_iterable(group.items() for group in groups):
        size, left = -(-shape.numel() // len(states)), shape.numel()
        pieces[name] = []
        for state in states:
            pieces[name] += _cut(state["fp32_flat_groups"], start, min(size, left))
            left -= min(size, left)
        start += size
    return pieces


def _cut(vectors: Sequence[Tensor], start: int, length: int) -> list[Tensor]:
    """Views of `length` elements from `start` on, of flat vectors laid end to end; ValueError where they end before."""
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
def _one_line(folder: Path) -> Iterator[None]:
    """What comes of other contents than expected becomes a `CheckpointError`."""
    try:
        yield
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: its weights cannot be put together ({type(error).__name__}: {reason}); use another checkpoint"
        ) from None
