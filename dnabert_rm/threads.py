"""How long a CPU thread waits for the others of its process before it leaves its core to somebody else."""

from __future__ import annotations

import os

SPINS = "10000"
"""Turns of a loop. Measured with two threads on two cores (LOG.md, "A busy laptop"): on idle cores as fast as OpenMP's
own 300,000; on cores that two other programs use as well, 2.5 times in fine-tuning and three times in pretraining."""


def wait_briefly() -> None:
    """Call before torch is imported; child processes inherit it. What the user has set is left alone.

    Torch divides each operation among threads that meet at its end. While one of them waits for a core, the others
    spin, by default for longer than the scheduler would need to give that core to the one they wait for.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
