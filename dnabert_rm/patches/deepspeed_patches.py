"""Patches for DeepSpeed: extension builds, checkpoint loading, gradient reduction and overflow checks."""

from __future__ import annotations

import contextlib
import functools
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dnabert_rm.patches.pytorch_patches import install_build_lock
from dnabert_rm.utils.errors import RankReadError


def import_deepspeed() -> Any:
    """Import DeepSpeed and return the module.

    What is changed: torch's build lock is replaced (see `install_build_lock`). DeepSpeed no longer compiles its
    shared-memory collective for CPU ranks.

    Reason: only DeepSpeed's inference needs this collective. If DeepSpeed compiles the collective, every rank leaves
    a file of 69 MB in /dev/shm.

    Upstream: the comments of deepspeedai/DeepSpeed#4115 describe the files in /dev/shm. The collective is built in
    deepspeed/comm/torch.py, `build_shm_op`.
    """
    import deepspeed

    install_build_lock()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def safe_torch_load() -> Iterator[None]:
    """Load only tensors and plain values from files during the block, so that a checkpoint can't run code.

    What is changed: `torch.load` always uses `weights_only=True`, even when DeepSpeed passes False. The few DeepSpeed
    classes that DeepSpeed checkpoints contain are allowed by name.

    Reason: DeepSpeed passes `weights_only=False`, which would let a checkpoint run code.

    Upstream: deepspeedai/DeepSpeed#6751 made `weights_only=False` explicit.

    Raises `RankReadError` if a file is damaged or contains objects of other classes. The message names the file.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    original_load = torch.load

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["weights_only"] = True
        try:
            return original_load(file, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            # torch's message for unpickling errors is long, and recommends weights_only=False.
            reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({' '.join(str(error).split())[:100]})"
            raise RankReadError(
                f"{file}: not loaded, because the file holds more than tensors or is damaged{reason}; "
                "use another checkpoint"
            ) from None

    torch.load = load  # type: ignore[assignment]
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        torch.load = original_load


def check_tensors_only(path: Path) -> None:
    """Raise `CheckpointError` if a torch file contains anything except tensors and plain values."""
    with safe_torch_load():
        torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path))


def fuse_overflow_check(optimizer: Any) -> None:
    """Check gradients for inf and NaN with one kernel per gradient.

    What is changed: the method `has_overflow_partitioned_grads_serial` of DeepSpeed's ZeRO-1 and ZeRO-2 optimizer, for
    bf16 and fp16. The new method returns the same result. Other optimizers are left unchanged.

    Reason: DeepSpeed launches about twenty kernels per gradient. In a step of BERT base, two thirds of all kernels are
    for this check. On a GPU, the check takes the same time per step for every batch size.

    Upstream: no upstream issue known; deepspeed/runtime/zero/stage_1_and_2.py.
    """
    if not hasattr(optimizer, "has_overflow_partitioned_grads_serial") or not hasattr(optimizer, "bit16_groups"):
        return

    def has_overflow() -> torch.Tensor:
        groups = (optimizer.averaged_gradients[number] or () for number in range(len(optimizer.bit16_groups)))
        gradients = (gradient for group in groups for gradient in group if gradient is not None and gradient.numel())
        # aminmax propagates NaN: if any value is NaN, both extremes are NaN.
        extremes = [extreme for gradient in gradients for extreme in torch.aminmax(gradient)]
        return ~torch.stack(extremes).isfinite().all().reshape(1) if extremes else torch.zeros(1, dtype=torch.bool)

    optimizer.has_overflow_partitioned_grads_serial = has_overflow


def keep_flat_weights(optimizer: Any) -> None:
    """Stop DeepSpeed's ZeRO-1 optimizer from making all parameters views of its flat weights again in every step.

    What is changed: the optimizer's method `_update_model_bit16_weights` does nothing. The parameters are views of the
    flat weights since the optimizer was created, and an update writes into these weights.

    Reason: with 12 layers, the method dispatches 800 operations in a step.

    Upstream: no upstream issue known; deepspeed/runtime/zero/stage_1_and_2.py, `step`, where a comment doubts that the
    call is needed.
    """
    optimizer._update_model_bit16_weights = lambda group_index: None


def set_zero1_gradients(optimizer: Any, parts: list[torch.Tensor]) -> None:
    """Give DeepSpeed's ZeRO-1 optimizer the summed gradients of the next update.

    What is changed: the optimizer's `averaged_gradients`, which its own hooks would fill. `parts` holds this rank's
    partition of each parameter group, flat and with padding.

    Reason: DeepSpeed's hooks copy and reduce every gradient separately (see `train/device_engine.py`).

    Upstream: DeepCompile sets flat partitions in the same way; deepspeed/runtime/zero/stage_1_and_2.py,
    `_get_preflattened_grad_partition`.
    """
    from deepspeed.runtime.zero.stage_1_and_2 import GradPartitionBufferGroup

    for number, part in enumerate(parts):
        optimizer.averaged_gradients[number] = GradPartitionBufferGroup([part], part)


@contextlib.contextmanager
def collect_files(deepspeed_engine: Any, copy: Callable[[Any], Any]) -> Iterator[dict[str, Callable[[], None]]]:
    """Collect the files that DeepSpeed saves in the block, instead of writing them.

    What is changed: the engine's `checkpoint_engine` during the block. The yielded dict maps each path to a function
    that writes the file. The function writes a copy of the state, made by `copy` at the time of the save.

    Reason: only the copy has to wait for the training. DeepSpeed's own asynchronous engines leave it to the caller to
    find out when the files are complete.

    Upstream: deepspeed/runtime/checkpoint_engine/, whose engines are chosen by the configuration.
    """
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    original = deepspeed_engine.checkpoint_engine
    files: dict[str, Callable[[], None]] = {}

    class Collector(CheckpointEngine):
        def create(self, info: Any) -> None:
            """Do nothing at the start of a checkpoint."""

        def save(self, state_dict: Any, path: str) -> None:
            """Copy the state, to be written later."""
            files[path] = functools.partial(original.save, copy(state_dict), path)

        def load(self, path: str, map_location: Any = None) -> Any:
            """Load as usual."""
            return original.load(path, map_location)

        def commit(self, info: Any) -> bool:
            """Do nothing at the end of a checkpoint."""
            return True

    deepspeed_engine.checkpoint_engine = Collector()
    try:
        yield files
    finally:
        deepspeed_engine.checkpoint_engine = original


@contextlib.contextmanager
def universal_loading(deepspeed_engine: Any) -> Iterator[None]:
    """Make DeepSpeed load universal checkpoints during the block.

    What is changed: `load_universal_checkpoint` in the engine's private configuration is True during the block.

    Reason: DeepSpeed reads this setting once, from the JSON configuration when the engine is created. At that
    time, it is not yet known whether the checkpoint has to be converted to a universal checkpoint.

    Upstream: no upstream issue known; deepspeed/runtime/engine.py, `load_universal_checkpoint`.
    """
    config = deepspeed_engine._config
    config.load_universal_checkpoint = True
    try:
        yield
    finally:
        config.load_universal_checkpoint = False


@contextlib.contextmanager
def keep_optimizer_settings(deepspeed_engine: Any) -> Iterator[None]:
    """Keep the engine's optimizer settings, such as weight decay, while a checkpoint is loaded in the block.

    What is changed: at the end of the block, the settings of all parameter groups and the clipping threshold are
    restored. Each parameter gets a separate step count. During the block, `compute_grad_norm` is True.

    Reason: DeepSpeed takes the settings from the checkpoint. For a universal checkpoint under ZeRO-3, DeepSpeed gives
    the first group's settings, including weight decay, to all groups. All groups also share one step tensor, and each
    group increments this tensor. An optimizer that computes no norm refuses a checkpoint in which DeepSpeed clipped.

    Upstream: no upstream issue known; deepspeed/runtime/zero/stage3.py,
    `load_hp_checkpoint_state_from_checkpoint_dir_stage3`.
    """
    zero = deepspeed_engine.optimizer
    settings = [{name: value for name, value in group.items() if name != "params"} for group in zero.param_groups]
    clip = getattr(zero, "clip_grad", None)
    if not (computes_norm := getattr(zero, "compute_grad_norm", True)):
        zero.compute_grad_norm = True
    yield
    if not computes_norm:
        zero.compute_grad_norm = False
    for group, own_settings in zip(zero.param_groups, settings, strict=True):
        group.update(own_settings)
    if clip is not None:
        zero.clip_grad = clip
    optimizer = getattr(zero, "optimizer", zero)
    for parameter, state in optimizer.state.items():
        if "step" in state:
            state["step"] = _step_count(optimizer, parameter, float(state["step"]))


def _step_count(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, step: float) -> torch.Tensor | int:
    """Return a step count in the optimizer's format: a tensor for torch's AdamW, an int for DeepSpeed's CPUAdam."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return int(step)
    return torch.tensor(step, device=parameter.device if optimizer.defaults["fused"] else "cpu")
