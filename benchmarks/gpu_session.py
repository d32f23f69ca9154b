"""A process that measures several rows one after the other, because starting a process takes about 20 seconds.

For each row it builds an engine, runs laps and frees the engine. If a row fails, the process ends; the parent starts
another one for the remaining rows.
"""

from __future__ import annotations

import contextlib
import gc
import importlib

import contenders
import torch
from setting import Setting
from workers import FinishedError, StepReporter

from dnabert_rm.distributed.process_group import Ranks, process_group


def serve(threads: int, has_group: bool, reporter: StepReporter) -> None:
    """Run the parent's tasks until it sends one without a function.

    A task is a function ("module:name") and its arguments. The function also gets the ranks before its arguments, and a
    reporter after them. One process group serves all tasks, because DeepSpeed keeps groups of its own.

    Args:
        threads: CPU threads of the process; 0: all cores.
        has_group: Whether to make a process group. Hugging Face's Trainer would use it to wrap the model.
        reporter: The worker's reporter. Each task gets a reporter of its own.
    """
    with process_group(threads) if has_group else contextlib.nullcontext() as ranks:
        while True:
            function, arguments = reporter.next_task()
            if not function:
                return
            module, name = function.split(":")
            # A function that trains ends with FinishedError, and the parent expects no result from it.
            with contextlib.suppress(FinishedError):
                reporter.send(getattr(importlib.import_module(module), name)(ranks, *arguments, reporter.another()))
            free_memory()


def free_memory() -> None:
    """Free the memory of the last row's engine, and forget compiled graphs."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def ours(ranks: Ranks, setting: Setting, reporter: StepReporter) -> None:
    """Train as `pretrain` does."""
    contenders.ours_on(ranks, setting, reporter)


def hugging_face_trainer(_ranks: None, setting: Setting, reporter: StepReporter) -> None:
    """Train with Hugging Face's Trainer."""
    contenders.hugging_face_trainer(setting, reporter)


def bare_loop(_ranks: None, setting: Setting, reporter: StepReporter) -> None:
    """Train in a short torch loop."""
    contenders.bare_loop(setting, reporter)
