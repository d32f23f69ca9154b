"""Convert a checkpoint to another number of ranks, ZeRO stage or precision, using DeepSpeed's universal checkpoint.

DeepSpeed's converter writes one folder per parameter, for every ZeRO stage. The folders contain master weights and
moments, which are fp32 for every training precision, so nothing is rounded. Each rank of the new run loads its share of
every parameter from these folders.

For ZeRO stages 1 and 2, the folders have a slightly different format than for stage 3. DeepSpeed loads only the format
of the run's own stage. If necessary, `_make_loadable` converts the folders from one format to the other.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from argparse import Namespace
from pathlib import Path

import torch
from torch import nn

from dnabert_rm.checkpoint.checksums import CheckpointLayout
from dnabert_rm.checkpoint.compatibility import SavedFormat, stage_error
from dnabert_rm.checkpoint.run_folder import FOLDER_NAME, temporary_folder
from dnabert_rm.utils.errors import CheckpointError

UNIVERSAL_NAME = "universal"
_STATES = ("fp32", "exp_avg", "exp_avg_sq")
_MODEL_FILES = {True: "zero_pp_rank_0_mp_rank_00_model_states.pt", False: "mp_rank_00_model_states.pt"}
"""DeepSpeed's file for everything that is not partitioned: True for stage 3, False for the other stages."""


def check_convertible(folder: Path, saved: SavedFormat, current: SavedFormat) -> None:
    """Raise `CheckpointError` if DeepSpeed can't convert a checkpoint from format `saved` to format `current`."""
    was, now = saved.layout, current.layout
    if was.nvme or now.nvme:
        on_disk = " with its optimizer states on disk" if was.nvme else ""
        raise CheckpointError(
            f"{folder}: was saved by {saved}{on_disk}; DeepSpeed can't convert checkpoints to or from disk (NVMe) "
            f"offload; resume with {was.world_size} ranks, --precision {saved.precision} and the original run's "
            "DeepSpeed configuration"
        )
    if 0 in (was.zero_stage, now.zero_stage):
        raise stage_error(folder, saved, now.zero_stage, current.precision)


def convert(folder: Path, run: Path, module: nn.Module, saved: CheckpointLayout, current: CheckpointLayout) -> None:
    """Convert the checkpoint in `folder` from layout `saved` to layout `current`, in this process alone.

    The result is written to `converted_folder(run)/universal/`. `module` is `engine.module` of DeepSpeed's engine. Call
    this function in a `safe_torch_load` block. Raises `CheckpointError` if the conversion fails, for example because
    the disk is full.
    """
    from deepspeed.checkpoint import ds_to_universal

    output = converted_folder(run) / UNIVERSAL_NAME
    _check_names(folder, module)
    options = Namespace(
        input_folder=str(folder),
        output_folder=str(output),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    remove_converted(run)
    try:
        output.mkdir(parents=True)
        # Hide DeepSpeed's messages and progress bars.
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            ds_to_universal.main(options)
        _make_loadable(output, module, saved.zero_stage, current.zero_stage)
    except (OSError, RuntimeError, KeyError, IndexError, TypeError, ValueError, AssertionError) as error:
        remove_converted(run)
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: can't be converted ({type(error).__name__}: {reason}); resume with {saved.world_size} ranks "
            f"and ZeRO stage {saved.zero_stage}, as in the run that saved it"
        ) from None


def converted_folder(run: Path) -> Path:
    """Return the temporary folder that `convert` writes to."""
    return temporary_folder(run / FOLDER_NAME / "converted")


def remove_converted(run: Path) -> None:
    """Delete the folder that `convert` wrote to."""
    shutil.rmtree(converted_folder(run), ignore_errors=True)


def _check_names(folder: Path, module: nn.Module) -> None:
    """Raise `CheckpointError` if a checkpoint file contains a parameter that the model does not have.

    The converter makes folders named after parameters, so a forged name could point outside the output folder.
    """
    known = set(module.state_dict())
    for path in sorted(folder.glob("*_states.pt")):
        content = torch.load(path, map_location="cpu")
        names = set(content.get("module") or ())
        shapes = content.get("param_shapes") or ()
        for group in [shapes] if isinstance(shapes, dict) else shapes:
            names |= set(group)
        for group in (content.get("optimizer_state_dict") or {}).get("param_slice_mappings") or ():
            names |= set(group)
        if unknown := sorted(names - known):
            raise CheckpointError(
                f"{path}: has a parameter {unknown[0]!r} that this run's model does not have; choose another checkpoint"
            )


def _make_loadable(output: Path, module: nn.Module, saved_stage: int, stage: int) -> None:
    """Rewrite the universal checkpoint in `output` so that a run with ZeRO stage `stage` can load it.

    `saved_stage` is the ZeRO stage of the original checkpoint. The rewritten optimizer state file contains only values
    that all parameters share, such as the step count.
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
    """Rewrite the optimizer state file `path` so that every ZeRO stage can load it. Return the step count.

    The folder `parameters` contains one folder per parameter.
    """
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
