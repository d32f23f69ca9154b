"""Contenders in processes of their own, one of them at work at a time: what one does to a process no other feels.

A worker imports the libraries, takes a contender's name and setting, and runs until its `Turn` makes it wait. The
parent then asks for steps: `lap = worker.run(5)`.
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
"""Steps that a contender runs before it is measured: the first allocates, the second finds what it left."""


class FinishedError(Exception):
    """The parent asks for no more steps."""


class FailedError(Exception):
    """A worker could not do what was asked; the text says why, in one line."""


@dataclass(frozen=True)
class Lap:
    """Some steps of a contender: seconds by wall and by processor, the loss of its first step, its peak memory.

    `kernels`: seconds and calls of everything that ran on a GPU, by name, where the lap was traced.
    """

    steps: int
    wall: float
    processor: float
    first_loss: float
    peak_bytes: int
    parts: dict[str, float] = field(default_factory=dict)
    kernels: dict[str, tuple[float, int]] = field(default_factory=dict)


class Turn:
    """What a contender calls after each step, with the step's loss and how its seconds divide, if it knows."""

    def __init__(self, pipe: Connection, device: str) -> None:
        self._pipe, self._device = pipe, device
        self._left = self._asked = STEPS_TO_START
        self._first_loss: Any = None
        self._parts: dict[str, float] = {}
        self._trace: Any = None
        self._start()

    def _start(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()
        if self._asked < 0:
            self._trace = start_trace(self._device)

    def __call__(self, loss: Any, parts: dict[str, float] | None = None) -> None:
        """Counts the step; after the last that was asked for, reports and waits. `FinishedError` ends it."""
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
        kernels = kernel_seconds(self._trace) if self._trace else {}
        self._trace = None
        self._pipe.send(Lap(abs(self._asked), wall, processor, float(self._first_loss), memory, self._parts, kernels))
        self._asked = self._pipe.recv()
        self._left = abs(self._asked)
        if not self._left:
            raise FinishedError
        self._parts = {}
        self._start()


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def peak_bytes(device: str) -> int:
    """Most memory so far: what torch allocated on a GPU, the process's resident memory on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start_trace(device: str) -> Any:
    """torch's profiler, started: on a GPU it records what runs there and nothing of the host."""
    from torch.profiler import ProfilerActivity, profile

    trace = profile(activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU])
    trace.start()
    return trace


def kernel_seconds(trace: Any) -> dict[str, tuple[float, int]]:
    """Seconds and calls by kernel's name; a CPU has none."""
    trace.stop()
    found = ((event.key, event.self_device_time_total / 1e6, event.count) for event in trace.key_averages())
    return {name: (seconds, calls) for name, seconds, calls in found if seconds}


class Worker:
    """A process that runs one contender. It begins to import at once; `start` gives it its task."""

    def __init__(self, device: str) -> None:
        # A server that has imported everything forks workers in a moment, but CUDA must not have been touched there.
        context = multiprocessing.get_context("spawn" if device == "cuda" else "forkserver")
        if device != "cuda":
            context.set_forkserver_preload(PRELOADED)
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_work, args=(there, device))
        self._process.start()
        there.close()

    def start(self, function: str, *arguments: Any) -> None:
        """Call `function` ("module:name") with the arguments, and a `Turn` as the last one."""
        self._pipe.send((function, arguments))

    def answer(self, timeout: float | None = None) -> Any:
        """The next lap, or what the function returned; `FailedError` where it ended otherwise."""
        try:
            if not self._pipe.poll(timeout):
                raise FailedError(f"took more than {timeout:.0f} s")
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise FailedError(f"the process ended with code {self._process.exitcode}") from None
        if isinstance(answer, FailedError):
            raise answer
        return answer

    def run(self, steps: int, timeout: float | None = None, *, traced: bool = False) -> Lap:
        """Let the waiting contender run so many steps; `traced`: with torch's profiler, which slows them a little."""
        self._pipe.send(-steps if traced else steps)
        return self.answer(timeout)

    def stop(self, patience: float = 10) -> None:
        """End the process, by force after so many seconds."""
        with contextlib.suppress(OSError):
            self._pipe.send(0)
        self._process.join(patience)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


PRELOADED = ["contenders", "deepspeed.runtime.engine", "torch.utils.tensorboard", "transformers.trainer",
             "transformers.models.bert.modeling_bert",
             "transformers.models.modernbert.modeling_modernbert"]  # fmt: skip


def _work(pipe: Connection, device: str) -> None:
    """Runs in the worker."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # The loader's own processes start as they would in a run, not from the server above.
    multiprocessing.set_start_method("fork", force=True)
    for name in PRELOADED:
        importlib.import_module(name)
    try:
        function, arguments = pipe.recv()
        module, name = function.split(":")
        answer = getattr(importlib.import_module(module), name)(*arguments, Turn(pipe, device))
    except (FinishedError, EOFError):
        return
    except Exception as error:  # whatever a row dies of is its result
        answer = FailedError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    with contextlib.suppress(OSError):
        pipe.send(answer)


@contextlib.contextmanager
def workers(device: str, number: int) -> Iterator[list[Worker]]:
    """So many workers, which end with the block."""
    started = [Worker(device) for _ in range(number)]
    try:
        yield started
    finally:
        for worker in started:
            worker.stop()
