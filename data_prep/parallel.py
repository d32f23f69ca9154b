"""Common executor interface for work in this process, in child processes, or on MPI ranks."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from dnabert_rm.utils.errors import ConfigError, DataError

_MPI_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")
"""Environment variables that MPI launchers set for their processes. Slurm sets the last two for its plugins of MPI."""
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
"""Environment variables with the number of ranks, innermost launcher first."""
T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def open_executor(workers: int) -> Iterator[Executor | None]:
    """Yield an executor for `run_all`.

    Without MPI, or with one MPI rank, `workers` child processes do the work; if `workers` is 1, this process does the
    work itself.

    With several MPI ranks, these are the workers, and `workers` is ignored. Rank 0 gets the executor. Every other
    rank processes items for rank 0. When rank 0 has left the `with` block, the other ranks get None. Raises
    `ConfigError` if mpi4py is not installed.
    """
    if _has_mpi_ranks():
        with _mpi_executor() as executor:
            yield executor
    elif workers <= 1:
        yield _SerialExecutor()
    else:
        pool = ProcessPoolExecutor(workers, mp_context=_start_method(), initializer=_start_worker)
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_all(executor: Executor, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
    """Yield (index, `function(items[index])`) in order of completion.

    The first exception of `function` ends the iteration. Under MPI, rank 0 also processes items, beginning at the end
    of `items`, instead of only waiting for the other ranks. Raises `DataError` if a worker process was killed.
    """
    if isinstance(executor, _SerialExecutor):
        for index, item in enumerate(items):
            yield index, function(item)
        return
    futures: dict[Future[R], int] = {}
    try:
        # Submitting is inside the try block, because an early death of a worker makes `submit` raise.
        for index, item in enumerate(items):
            futures[executor.submit(function, item)] = index
        if not isinstance(executor, ProcessPoolExecutor):
            for future in reversed(list(futures)):
                if future.cancel():
                    index = futures.pop(future)
                    yield index, function(items[index])
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed (out of memory?); run the same command again, with fewer --workers"
        ) from None
    finally:
        for future in futures:
            future.cancel()


class _SerialExecutor(Executor):
    """Executor without worker processes. `run_all` calls the function in this process, one item at a time."""

    def submit(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        future: Future[R] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def _start_method() -> Any:
    """Return the multiprocessing context: "fork" where it is safe, else "spawn".

    Forked workers inherit all imports. In a process with several threads fork is unsafe, because it copies locks that
    other threads hold. MPI may have such threads. Outside Linux, "spawn" is always used.
    """
    import multiprocessing

    can_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform == "linux"
    has_threads = threading.active_count() > 1 or "mpi4py.MPI" in sys.modules
    return multiprocessing.get_context("fork" if can_fork and not has_threads else "spawn")


def _start_worker() -> None:
    """Make this worker process ignore Ctrl-C, and make it exit when its parent process ends.

    The parent handles Ctrl-C. Without this exit, a worker would wait forever if SIGKILL had ended its parent.
    """
    import multiprocessing
    import signal
    from multiprocessing.connection import wait

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _has_mpi_ranks() -> bool:
    """Return whether this process is one of several MPI ranks.

    Slurm's plugins set the variables of MPI for every task. So a single task must work without mpi4py. Raises
    `ConfigError` if there may be several ranks, and mpi4py is not installed.
    """
    if not any(name in os.environ for name in _MPI_VARIABLES):
        return False
    if next((os.environ[name] for name in _SIZE_VARIABLES if name in os.environ), None) == "1":
        return False
    try:
        from mpi4py import MPI
    except ImportError:
        raise ConfigError(
            "started by an MPI launcher, but mpi4py is missing; run pip install 'dnabert_rm[mpi]'"
        ) from None
    return MPI.COMM_WORLD.Get_size() > 1


@contextlib.contextmanager
def _mpi_executor() -> Iterator[Executor | None]:
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    executor: Any
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        yield executor
