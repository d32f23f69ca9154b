"""Worker processes for the benchmarks: one contender per process, one of them running at a time.

Separate processes keep the contenders from affecting each other. A worker imports the libraries, receives a contender's
name and setting, and trains until its `StepReporter` blocks it. The parent then requests steps:
`lap = worker.run(5)`.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

STEPS_TO_START = 2
"""Steps before the measurement: the first one allocates memory, the second one reuses it."""


KERNELS = "kernels"
"""Asks for the seconds of each kernel in a lap. Any other text is the path of a host trace."""


class FinishedError(Exception):
    """The parent requests no more steps."""


class FailedError(Exception):
    """A worker failed; the message gives the reason in one line."""


@dataclass(frozen=True)
class Lap:
    """Measurement of some steps of a contender."""

    steps: int
    wall: float
    """Seconds of wall time."""
    processor: float
    """Seconds of processor time."""
    first_loss: float
    """Loss of the contender's very first step."""
    peak_bytes: int
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds by part of the step, if the contender measures them."""
    kernels: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Seconds and calls of each GPU kernel, if the lap was traced."""


class StepReporter:
    """Callback after each step: counts steps, reports laps to the parent, and waits for its next request."""

    def __init__(self, pipe: Connection, device: str) -> None:
        self._pipe, self._device = pipe, device
        self._left = self._requested = STEPS_TO_START
        self._first_loss: Any = None
        self._parts: dict[str, float] = {}
        self._trace: Any = None
        self._trace_to = ""
        self._start()

    def another(self) -> StepReporter:
        """Return a reporter for the next contender in this process."""
        return StepReporter(self._pipe, self._device)

    def next_task(self) -> Any:
        """Wait for the parent's next message between two contenders."""
        return self._pipe.recv()

    def send(self, result: Any) -> None:
        """Send the result of a function to the parent."""
        self._pipe.send(result)

    def _start(self) -> None:
        if self._trace_to:
            self._trace = start_trace(self._device, with_host=self._trace_to != KERNELS)
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def __call__(self, loss: Any, parts: dict[str, float] | None = None) -> None:
        """Count a step; after the last requested one, report the lap and wait. Raise `FinishedError` at the end.

        `parts`: seconds of the step by part, if known.
        """
        if self._first_loss is None:
            self._first_loss = loss.detach().clone() if hasattr(loss, "detach") else loss
        for name, seconds in (parts or {}).items():
            self._parts[name] = self._parts.get(name, 0.0) + seconds
        self._left -= 1
        if self._left:
            return
        synchronize(self._device)
        wall, processor = time.perf_counter() - self._wall, time.process_time() - self._processor
        memory = peak_bytes(self._device)
        kernels = self._end_trace()
        self._pipe.send(Lap(self._requested, wall, processor, float(self._first_loss), memory, self._parts, kernels))
        self._requested, self._trace_to = self._pipe.recv()
        self._left = self._requested
        if not self._left:
            raise FinishedError
        self._parts = {}
        self._start()

    def _end_trace(self) -> dict[str, tuple[float, int]]:
        """Stop the profiler, if it runs. Return the kernels, or write the host trace."""
        trace, self._trace = self._trace, None
        if trace is None:
            return {}
        trace.stop()
        if self._trace_to == KERNELS:
            return kernel_seconds(trace)
        trace.export_chrome_trace(self._trace_to)
        return {}


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def peak_bytes(device: str) -> int:
    """Return the peak memory so far: torch's allocations on a GPU, the process's resident memory on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start_trace(device: str, with_host: bool) -> Any:
    """Start torch's profiler. On a GPU it records the host only if asked to, because that slows the host."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA] if device == "cuda" else []
    if with_host or not activities:
        activities.append(ProfilerActivity.CPU)
    trace = profile(activities=activities)
    trace.start()
    return trace


def kernel_seconds(trace: Any) -> dict[str, tuple[float, int]]:
    """Return seconds and calls by kernel name of a stopped profiler; empty on a CPU."""
    kernels = ((event.key, event.self_device_time_total / 1e6, event.count) for event in trace.key_averages())
    return {name: (seconds, calls) for name, seconds, calls in kernels if seconds}


class Worker:
    """A process that runs one contender. It starts importing at once; `start` gives it its task."""

    def __init__(self, device: str) -> None:
        # A fork server with all imports starts workers quickly, but a process that uses CUDA must not be forked.
        context = multiprocessing.get_context("spawn" if device == "cuda" else "forkserver")
        if device != "cuda":
            context.set_forkserver_preload(PRELOADED)
        self._pipe, worker_end = context.Pipe()
        self._process = context.Process(target=_work, args=(worker_end, device))
        self._process.start()
        worker_end.close()

    def start(self, function: str, *arguments: Any) -> None:
        """Call `function` ("module:name") with the arguments and a `StepReporter` as the last one."""
        self._pipe.send((function, arguments))

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next lap, or the function's result. Raises `FailedError` if the worker failed or timed out."""
        try:
            if not self._pipe.poll(timeout):
                raise FailedError(f"took more than {timeout:.0f} s")
            message = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise FailedError(f"the process ended with code {self._process.exitcode}") from None
        if isinstance(message, FailedError):
            raise message
        return message

    def run(self, steps: int, timeout: float | None = None, *, trace: str = "") -> Lap:
        """Let the waiting contender run `steps` steps.

        `trace` is `KERNELS`, or the path of a file for a Chrome trace of the host. Both slow the steps.
        """
        self._pipe.send((steps, trace))
        lap: Lap = self.receive(timeout)
        return lap

    def finish(self) -> None:
        """End the waiting contender. A process that runs several then waits for the next one."""
        with contextlib.suppress(OSError):
            self._pipe.send((0, ""))

    def stop(self, patience: float = 10) -> None:
        """End the process; kill it after `patience` seconds."""
        self.finish()
        self._process.join(patience)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


PRELOADED = [
    "contenders",
    "deepspeed.runtime.engine",
    "torch.utils.tensorboard",
    "transformers.trainer",
    "transformers.models.bert.modeling_bert",
    "transformers.models.modernbert.modeling_modernbert",
]


def _work(pipe: Connection, device: str) -> None:
    """Main function of the worker process."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # The loader's processes must start as in a run, not from the fork server.
    multiprocessing.set_start_method("fork", force=True)
    for name in PRELOADED:
        importlib.import_module(name)
    try:
        function, arguments = pipe.recv()
        module, name = function.split(":")
        message = getattr(importlib.import_module(module), name)(*arguments, StepReporter(pipe, device))
    except (FinishedError, EOFError):
        return
    except Exception as error:  # any failure becomes the row's result
        message = FailedError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    with contextlib.suppress(OSError):
        pipe.send(message)


@contextlib.contextmanager
def workers(device: str, number: int) -> Iterator[list[Worker]]:
    """Run `number` workers until the end of the `with` block."""
    started = [Worker(device) for _ in range(number)]
    try:
        yield started
    finally:
        for worker in started:
            worker.stop()
