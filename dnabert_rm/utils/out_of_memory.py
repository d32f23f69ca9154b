"""Explain out-of-memory errors in one line that names what to reduce."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator

from dnabert_rm.utils.errors import UserError

# torch's CPU allocator raises a plain RuntimeError, recognised by its text (c10/core/impl/alloc_cpu.cpp).
_CPU_ERROR = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory", re.IGNORECASE)
_REQUESTED = re.compile(r"tried to allocate ([\d.]+) (bytes|[KMG]iB)", re.IGNORECASE)


class NotEnoughMemoryError(UserError):
    """A process ran out of memory. The last checkpoint of a run is not affected."""

    on_one_rank = True


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a GPU or this machine has run out of memory."""
    torch = sys.modules.get("torch")  # not imported here: some commands don't need torch
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_CPU_ERROR.search(str(error)))


@contextlib.contextmanager
def explain_out_of_memory(advice: str, rank: int | None = None) -> Iterator[None]:
    """Turn an out-of-memory error in the `with` block into a `NotEnoughMemoryError`.

    The one-line message ends with `advice`, and begins with the rank if `rank` is set.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        where = "" if rank is None else f"rank {rank}: "
        raise NotEnoughMemoryError(f"{where}out of memory{_requested_memory(str(error))}; {advice}") from None


def _requested_memory(text: str) -> str:
    """Return the size of the failed allocation, formatted for the message. Return "" if `text` does not contain it."""
    found = _REQUESTED.search(text)
    if not found:
        return ""
    number, unit = found.groups()
    return f" ({float(number) / 2**30:.3g} GiB requested)" if unit == "bytes" else f" ({number} {unit} requested)"
