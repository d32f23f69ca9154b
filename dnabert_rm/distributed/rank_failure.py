"""Rank failures: recognize errors that the failure of another rank caused, and explain them in one line."""

from __future__ import annotations

import contextlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed as dist

from dnabert_rm.utils.errors import RankFailureError

FOLDER_NAME = "lost_ranks"
_LAUNCHER_POLL_SECONDS = 1.0
# gloo raises plain RuntimeErrors, so the message has to be matched. All of these come from its TCP transport.
_GLOO = re.compile(r"gloo.*(closed|reset|refused|timed out|broken pipe|timeout)", re.IGNORECASE | re.DOTALL)


def is_rank_failure(error: BaseException) -> bool:
    """Return whether an error means that another rank can't be reached, rather than a fault of this rank."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(_GLOO.search(str(error))))


@contextlib.contextmanager
def explain_rank_failures(
    run: Path, rank: int, under_launcher: bool, saved_steps: Callable[[Path], list[int]]
) -> Iterator[None]:
    """Raise a one-line `RankFailureError` in place of an error that another rank's failure caused.

    The original traceback is written to the run folder, in case the error had another cause.
    """
    try:
        yield
    except Exception as error:
        if not is_rank_failure(error):
            raise
        path = run / FOLDER_NAME / f"{time.strftime('%Y%m%d-%H%M%S')}_rank_{rank}.txt"
        text = "".join(traceback.format_exception(error))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError:
            print(text, file=sys.stderr)
        if under_launcher:
            # A launcher reports the first exit code that it sees, so let the failed rank exit first.
            time.sleep(1.5 * _LAUNCHER_POLL_SECONDS)
        steps = saved_steps(run)
        saved = f"the last checkpoint is from step {steps[-1]}" if steps else "there is no checkpoint yet"
        raise RankFailureError(
            f"rank {rank}: another rank failed ({_first_sentence(error)}); {saved}; run the same command to resume "
            f"(traceback: {path})"
        ) from None


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of an error message, without the source location at the start of gloo's messages."""
    return re.sub(r"^\[\S+:\d+\] ", "", re.split(r"\. |\n", str(error).strip())[0])
