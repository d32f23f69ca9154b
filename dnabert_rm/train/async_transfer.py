"""Asynchronous transfers between host and device, and timestamps of the device.

A GPU runs the kernels that the host queues, and the host may be ahead of it. Reading a value makes the host wait until
the GPU has caught up, and then the GPU waits for the host's next kernel. A run therefore reads the values of a step
after it has queued the next step.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor


class DeviceTimestamp:
    """The time at which the device finishes all work that has been queued. On a CPU this is now."""

    def __init__(self, device: torch.device) -> None:
        """Queue the timestamp."""
        self._event: torch.cuda.Event | None = None
        self._seconds = 0.0
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        else:
            self._seconds = time.perf_counter()

    def wait(self) -> None:
        """Wait until the device has reached the timestamp."""
        if self._event:
            self._event.synchronize()

    def seconds_since(self, earlier: DeviceTimestamp) -> float:
        """Return the seconds from `earlier`, a timestamp of the same device, to this one. Both must be in the past."""
        if self._event:
            return earlier._event.elapsed_time(self._event) / 1000  # type: ignore[union-attr]
        return self._seconds - earlier._seconds


class AsyncRead:
    """Copy of a small tensor on the host, which is complete once the device has finished the queued work."""

    def __init__(self, values: Tensor) -> None:
        """Queue the copy. On a GPU, torch copies to pinned memory, for which the host need not wait."""
        self._copy = values.to("cpu", non_blocking=True)
        self.end = DeviceTimestamp(values.device)

    def values(self) -> list[float]:
        """Wait for the copy, and return its values."""
        self.end.wait()
        found: list[float] = self._copy.numpy().tolist()
        return found


class HostToDevice:
    """Copies a few numbers to the device without waiting for it.

    Two pinned buffers take turns. A buffer is written again two copies later, so the device must have finished the
    work that was queued with a copy before the second copy after it.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        """Allocate buffers for `size` numbers."""
        self._device = device
        is_gpu = device.type == "cuda"
        self._buffers = [torch.zeros(size, dtype=torch.float64, pin_memory=is_gpu) for _ in range(2)]
        self._arrays = [buffer.numpy() for buffer in self._buffers]
        self._turn = 0

    def copy(self, values: list[float]) -> Tensor:
        """Return the numbers as a float64 tensor on the device. On a CPU it is valid until the second copy after it."""
        self._turn = 1 - self._turn
        self._arrays[self._turn][:] = values
        return self._buffers[self._turn].to(self._device, non_blocking=True)
