"""DeepSpeed imported, and what it compiles at the first use: which parts, and the lock around each."""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dnabert_rm.utils.errors import RankReadError
from dnabert_rm.utils.lock import LockHeldError, PosixLock


class BuildLock:
    """Replacement for torch's lock around the compilation of an extension: one process builds, the others wait.

    Reason: torch's `FileBaton` is a file that stays behind when its process is killed; every later run then waits for
    ever, in silence. A POSIX lock is released by the system, also on home folders that nodes share.
    """

    def __init__(self, lock_file_path: str, **_: Any) -> None:
        """`lock_file_path` is the file that torch would make; the lock is a second file beside it."""
        self._lock = PosixLock(Path(f"{lock_file_path}.held"))

    def try_acquire(self) -> bool:
        """Whether this process is the one that builds; on a file system without locks every process builds."""
        try:
            self._lock.acquire()
        except LockHeldError:
            return False
        except OSError:
            return True
        return True

    def wait(self) -> None:
        """Return once the process that builds has finished or died."""
        try:
            self._lock.acquire(wait=True)
        finally:
            self.release()

    def release(self) -> None:
        """Let the other processes go on."""
        self._lock.release()


def import_deepspeed() -> Any:
    """The deepspeed module; what it compiles is guarded by `BuildLock`.

    Left out is the shared-memory collective that it would compile for CPU ranks. Only its inference uses it, and every
    rank leaves 69 MB in /dev/shm.
    """
    import deepspeed
    from torch.utils import cpp_extension

    cpp_extension.FileBaton = BuildLock  # type: ignore[assignment,misc]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def safe_torch_load() -> Iterator[None]:
    """Inside, every `torch.load`, DeepSpeed's too, runs with `weights_only=True`: a checkpoint can't run code.

    DeepSpeed asks for `weights_only=False` by name, so the argument is overridden. The few classes of its own that
    it stores are allowed by name. `RankReadError` names a file that holds others, or is damaged.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    plain_load = torch.load

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["weights_only"] = True
        try:
            return plain_load(file, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            # torch's reasons run over many lines and advise to load it all the same.
            reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({' '.join(str(error).split())[:100]})"
            raise RankReadError(
                f"{file}: holds more than tensors, or is damaged{reason}, and was not loaded; use another checkpoint"
            ) from None

    torch.load = load  # type: ignore[assignment]
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        torch.load = plain_load


def check_tensors_only(path: Path) -> None:
    """`CheckpointError` where a file of torch's holds more than tensors and plain values; their data are not read."""
    with safe_torch_load():
        torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path))


def fuse_overflow_check(optimizer: Any) -> None:
    """ZeRO-1 and ZeRO-2 in bf16 and fp16: the same answer to "is a gradient inf or NaN?" with one kernel a gradient.

    DeepSpeed takes some twenty, two thirds of all that a step of BERT's base size launches; on a GPU that is time that
    a step takes whatever its size.
    """
    if not hasattr(optimizer, "has_overflow_partitioned_grads_serial") or not hasattr(optimizer, "bit16_groups"):
        return

    def has_overflow() -> torch.Tensor:
        groups = (optimizer.averaged_gradients[number] or () for number in range(len(optimizer.bit16_groups)))
        gradients = (gradient for group in groups for gradient in group if gradient is not None and gradient.numel())
        # A NaN is the least and the greatest of whatever it is among.
        extremes = [extreme for gradient in gradients for extreme in torch.aminmax(gradient)]
        return ~torch.stack(extremes).isfinite().all().reshape(1) if extremes else torch.zeros(1, dtype=torch.bool)

    optimizer.has_overflow_partitioned_grads_serial = has_overflow


@contextlib.contextmanager
def keep_optimizer_settings(deepspeed_engine: Any) -> Iterator[None]:
    """Afterwards the optimizer has the settings of this run, not those of the checkpoint, and a step count a group.

    DeepSpeed's universal loading gives the first group's settings to all of them, weight decay included, and one
    tensor that counts the steps, which every group then increases.
    """
    zero = deepspeed_engine.optimizer
    ours = [{name: value for name, value in group.items() if name != "params"} for group in zero.param_groups]
    clip = getattr(zero, "clip_grad", None)
    yield
    for group, settings in zip(zero.param_groups, ours, strict=True):
        group.update(settings)
    if clip is not None:
        zero.clip_grad = clip
    optimizer = getattr(zero, "optimizer", zero)
    for parameter, state in optimizer.state.items():
        if "step" in state:
            state["step"] = _step_count(optimizer, parameter, float(state["step"]))


def _step_count(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, step: float) -> torch.Tensor | int:
    """The count of updates as the optimizer keeps it: torch's in a tensor of its own, DeepSpeed's CPUAdam in an int."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return int(step)
    return torch.tensor(step, device=parameter.device if optimizer.defaults["fused"] else "cpu")
