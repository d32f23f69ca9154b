"""A checkpoint for another number of ranks or another ZeRO stage, by way of DeepSpeed's universal checkpoint.

DeepSpeed's converter takes the partitions of any stage apart into one folder a parameter, from which each rank of
any stage takes its part. The stages 1 and 2 and stage 3 write that folder a little differently and read it as they
write it; `_complete` adds what the other side wants.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnabert_rm.checkpoint.checksums import CheckpointLayout
from dnabert_rm.checkpoint.run_folder import FOLDER_NAME
from dnabert_rm.utils.errors import CheckpointError

UNIVERSAL_NAME = "universal"
_ASIDE = ".converted.tmp"
_STATES = ("fp32", "exp_avg", "exp_avg_sq")
_MODEL_FILES = {True: "zero_pp_rank_0_mp_rank_00_model_states.pt", False: "mp_rank_00_model_states.pt"}
"""DeepSpeed's file of what is not partitioned, under stage 3 and under the others."""


def check_convertible(folder: Path, saved: CheckpointLayout, now: CheckpointLayout) -> None:
    """`CheckpointError` where DeepSpeed has no way from one layout to the other."""
    was = f"{folder}: was saved by {saved.world_size} ranks under ZeRO stage {saved.zero_stage}"
    if saved.nvme or now.nvme:
        raise CheckpointError(
            f"{was}{' with its optimizer on a disk' if saved.nvme else ''}; with an optimizer on a disk, then or now, "
            f"start {saved.world_size} ranks and the DeepSpeed configuration of that run"
        )
    if 0 in (saved.zero_stage, now.zero_stage):
        raise CheckpointError(
            f"{was}, and this run has stage {now.zero_stage}; DeepSpeed has no way between stage 0 and the others: "
            f"give --ds-config with stage {saved.zero_stage}"
        )


def convert(folder: Path, run: Path, module: nn.Module, saved: CheckpointLayout, now: CheckpointLayout) -> None:
    """Convert the checkpoint in `folder`, in this process, to `universal/` in `converted_folder(run)`.

    To be called inside `safe_torch_load`. `CheckpointError` where that fails, a full disk included.
    """
    from deepspeed.checkpoint import ds_to_universal

    output = converted_folder(run) / UNIVERSAL_NAME
    _check_names(folder, module, saved.zero_stage)
    options = Namespace(
        input_folder=str(folder), output_folder=str(output), num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    remove_converted(run)
    try:
        output.mkdir(parents=True)
        # DeepSpeed reports its steps and draws bars.
        silence = io.StringIO()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            ds_to_universal.main(options)
        _complete(output, module, saved.zero_stage, now.zero_stage)
    except (OSError, RuntimeError, KeyError, IndexError, TypeError, ValueError, AssertionError) as error:
        remove_converted(run)
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: can't be converted ({type(error).__name__}: {reason}); start {saved.world_size} ranks under "
            f"ZeRO stage {saved.zero_stage}, as it was saved"
        ) from None


def converted_folder(run: Path) -> Path:
    """Where `convert` writes."""
    return run / FOLDER_NAME / _ASIDE


def remove_converted(run: Path) -> None:
    """Delete what `convert` wrote."""
    shutil.rmtree(converted_folder(run), ignore_errors=True)


@contextlib.contextmanager
def universal_loading(engine: Any) -> Iterator[None]:
    """Inside, DeepSpeed loads universal checkpoints; afterwards its own again."""
    config = engine._config
    config.load_universal_checkpoint = True
    try:
        yield
    finally:
        config.load_universal_checkpoint = False


def _check_names(folder: Path, module: nn.Module, stage: int) -> None:
    """`CheckpointError` unless the files name this model's parameters: the converter makes folders of these names."""
    known = set(module.state_dict())
    for path in sorted(folder.glob("*_states.pt")):
        content = torch.load(path, map_location="cpu")
        names = set(content.get("module") or ())
        shapes = content.get("param_shapes") or ()
        for group in [shapes] if isinstance(shapes, dict) else shapes:
            names |= set(group)
        for group in (content.get("optimizer_state_dict") or {}).get("param_slice_mappings") or ():
            names |= set(group)
        if strange := sorted(names - known):
            raise CheckpointError(f"{path}: has a parameter {strange[0]!r}, which this run's model lacks")


def _complete(output: Path, module: nn.Module, saved_stage: int, stage: int) -> None:
    """Make the folder loadable by `stage`: the stages 1 and 2 and stage 3 each leave out what they need not themselves.

    The optimizer's state is cut down to what is common to all parameters, the step count among it.
    """
    step = _common_state(output / "zero" / "optimizer_state.pt", saved_stage, output / "zero")
    if (saved_stage == 3) == (stage == 3):
        return
    os.replace(output / _MODEL_FILES[saved_stage == 3], output / _MODEL_FILES[stage == 3])
    for name, parameter in module.named_parameters() if saved_stage == 3 else ():
        folder = output / "zero" / name
        torch.save(step, folder / "step.pt")
        for state in _STATES:
            flat = torch.load(folder / f"{state}.pt")
            # ZeRO keeps a parameter's whole shape in ds_shape while it is partitioned.
            torch.save({"param": flat.view(getattr(parameter, "ds_shape", parameter.shape))}, folder / f"{state}.pt")


def _common_state(path: Path, saved_stage: int, parameters: Path) -> torch.Tensor:
    """Rewrite the converted optimizer's state so that every stage finds what it looks for; returns the step count."""
    from deepspeed import __version__

    content = torch.load(path, map_location="cpu")
    if saved_stage == 3:
        step = content["optimizer_state_dict"]["state"][0]["step"]
    else:
        step = torch.load(next(iter(sorted(parameters.rglob("step.pt")))))
    groups = content["param_groups"]
    kept = {name: content[name] for name in ("loss_scaler", "dynamic_loss_scale", "overflow") if name in content}
    nested = {"state": {0: {"step": step}}, "param_groups": groups}
    torch.save({**kept, "ds_version": __version__, "param_groups": groups, "optimizer_state_dict": nested}, path)
    return step
