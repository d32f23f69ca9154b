"""Hides what third parties print and a user can't act on."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_third_parties() -> None:
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
