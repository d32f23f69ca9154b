"""One executor interface: this process, its children, or the ranks of an MPI job."""

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

_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")
"""Variables that MPI launchers set for their processes."""
T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def open_executor(workers: int) -> Iterator[Executor | None]:
    """An executor for `run_all`, or None on the MPI ranks that have served another rank's one.

    One worker is this process itself. Under an MPI launcher the ranks are the workers, whatever
    `workers` says. Raises `ConfigError` where a launcher is there but mpi4py is not.
    """
    if any(name in os.environ for name in _LAUNCHED):
        with _mpi_executor() as executor:
            yield executor
    elif workers <= 1:
        yield _SameProcess()
    else:
        pool = ProcessPoolExecutor(workers, mp_context=_context(), initializer=_start_worker)
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _context() -> Any:
    """How workers start: forked, so that they have every import already, where that is safe.

    It is not in a process with threads, whose locks would be copied as they are; "spawn" starts clean ones.
    """
    import multiprocessing

    can_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform == "linux"
    return multiprocessing.get_context("fork" if can_fork and threading.active_count() == 1 else "spawn")


def run_all(executor: Executor, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
    """Yield (index, `function(items[index])`) as they are done; the first exception ends it all.

    Under MPI this rank takes part, from the end of the list, so that n ranks do n shares of the
    work. Raises `DataError` where a worker process died.
    """
    if isinstance(executor, _SameProcess):
        for index, item in enumerate(items):
            yield index, function(item)
        return
    futures: dict[Future[R], int] = {}
    try:
        # A worker that dies early breaks the pool while items are still being handed out.
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


class _SameProcess(Executor):
    """Marks that `run_all` is to call the function itself, one item at a time."""

    def submit(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        future: Future[R] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, even by SIGKILL, which would leave this worker waiting."""
    import multiprocessing
    import signal
    from multiprocessing.connection import wait

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _mpi_executor() -> Iterator[Executor | None]:
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except ImportError:
        raise ConfigError("started by an MPI launcher, but mpi4py is missing; pip install 'dnabert_rm[mpi]'") from None
    if MPI.COMM_WORLD.Get_size() == 1:
        yield _SameProcess()
        return
    executor: Any
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        yield executor
