"""Memory that is not there: one line that names what takes less, in place of a traceback."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator

from dnabert_rm.utils.errors import UserError

# The CPU's allocator raises plain RuntimeErrors, so its words have to do (c10/core/impl/alloc_cpu.cpp).
_CPU = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory", re.IGNORECASE)
_WANTED = re.compile(r"tried to allocate ([\d.]+) (bytes|[KMG]iB)", re.IGNORECASE)


class NotEnoughMemoryError(UserError):
    """A process could not get the memory that it asked for; a run's last checkpoint is intact."""

    on_one_rank = True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU, or this machine, has no memory left."""
    torch = sys.modules.get("torch")  # commands that tell mistakes before they import it ask here too
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_CPU.search(str(error)))


@contextlib.contextmanager
def explain_out_of_memory(mends: str, rank: int | None = None) -> Iterator[None]:
    """Inside, an error for lack of memory becomes a `NotEnoughMemoryError` of one line, which ends with `mends`."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        who = "" if rank is None else f"rank {rank}: "
        raise NotEnoughMemoryError(f"{who}out of memory{_wanted(str(error))}; {mends}") from None


def _wanted(text: str) -> str:
    """How much was asked for, in GiB where torch counts bytes; empty where its words don't say."""
    found = _WANTED.search(text)
    if not found:
        return ""
    number, unit = found.groups()
    return f" ({float(number) / 2**30:.3g} GiB wanted)" if unit == "bytes" else f" ({number} {unit} wanted)"
