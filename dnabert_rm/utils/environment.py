"""Hides what third parties print and a user can't act on."""

from __future__ import annotations

import logging
import os
import warnings


def suppress_library_output() -> None:
    """Call before transformers or DeepSpeed are imported; child processes inherit what lies in the environment.

    Hidden: torch's deprecation warning for each collective that DeepSpeed calls, DeepSpeed's notes on its own
    set-up (it puts its level back at import, so a filter stands in for one), transformers' bars over weights.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # torch's own warnings at the start: names of other nodes that can't be looked up, and the like.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("DeepSpeed").addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


SPINS = "10000"
"""Turns of a loop. Measured with two threads on two cores (LOG.md, "A busy laptop"): on idle cores as fast as OpenMP's
own 300,000; on cores that two other programs use as well, 2.5 times in fine-tuning and three times in pretraining."""


def limit_openmp_spinning() -> None:
    """Call before torch is imported; child processes inherit it. What the user has set is left alone.

    Torch divides each operation among threads that meet at its end. While one of them waits for a core, the others
    spin, by default for longer than the scheduler would need to give that core to the one they wait for.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
