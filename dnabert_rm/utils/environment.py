"""Process environment: hide third-party output and limit OpenMP spinning."""

from __future__ import annotations

import logging
import os
import warnings


def suppress_library_output() -> None:
    """Hide third-party output that a user can't act on.

    Call before importing transformers or DeepSpeed. The function sets environment variables, which child processes
    inherit.

    Hidden output:

    - torch's warnings about deprecated collectives, which DeepSpeed still calls.
    - Warnings of torch's C++ code.
    - DeepSpeed's messages below the level ERROR.
    - transformers' warnings and progress bars.
    - torchao's warnings about its own code. transformers imports torchao if it is installed.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # Warnings of torch's C++ code at start-up, for example that another node's name can't be resolved.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A filter, since DeepSpeed resets the level of its logger when it is imported.
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


SPIN_COUNT = "10000"
"""Loop iterations that an OpenMP thread spins before it sleeps.

Measured with two threads on two cores (dev/LOG.md, "A busy laptop"). On idle cores it is as fast as OpenMP's default,
300,000. On cores shared with two other programs, fine-tuning is 2.5 times faster and pretraining three times.
"""


def limit_openmp_spinning() -> None:
    """Limit OpenMP spin-waiting, unless the user has configured it.

    Call before importing torch. Child processes inherit the setting.

    Torch divides an operation among threads. At the end of the operation, the threads wait for each other. While one
    thread waits for a core, the others spin. By default they spin long enough to delay the thread that needs a core.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
