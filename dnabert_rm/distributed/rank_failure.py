"""The other ranks: how long a collective waits for them, and what is said when they are gone."""

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
_LAUNCHER_LOOKS_EVERY_SECONDS = 1.0
# gloo raises plain RuntimeErrors, so its words have to do; all of them come from its TCP transport.
_GLOO = re.compile(r"gloo.*(closed|reset|refused|timed out|broken pipe|timeout)", re.IGNORECASE | re.DOTALL)


def is_rank_failure(error: BaseException) -> bool:
    """Whether an error says that another rank is out of reach; errors of this rank's own work don't."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(_GLOO.search(str(error))))


@contextlib.contextmanager
def explain_rank_failures(
    run: Path, rank: int, under_launcher: bool, saved_steps: Callable[[Path], list[int]]
) -> Iterator[None]:
    """Inside, an error that comes from a rank that is gone becomes a `RankFailureError` of one line.

    Its traceback is kept in the run folder, because it may hide something else.
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
            path.write_text(text)
        except OSError:
            print(text, file=sys.stderr)
        if under_launcher:
            # It reports the first exit code that it sees; let that be the one of the rank that failed.
            time.sleep(1.5 * _LAUNCHER_LOOKS_EVERY_SECONDS)
        steps = saved_steps(run)
        saved = f"the last checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint yet"
        raise RankFailureError(
            f"rank {rank}: another rank is gone ({_in_short(error)}); {saved}; run the same command to go on "
            f"(traceback: {path})"
        ) from None


def _in_short(error: Exception) -> str:
    """An error's first sentence without the source file that gloo puts before it."""
    return re.sub(r"^\[\S+:\d+\] ", "", re.split(r"\. |\n", str(error).strip())[0])
