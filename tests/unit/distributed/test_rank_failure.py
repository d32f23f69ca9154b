"""Errors that mean a rank failure, and the timeouts of collectives."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from dnabert_rm.distributed.process_group import collective_timeout, set_collective_timeout
from dnabert_rm.distributed.rank_failure import is_rank_failure
from dnabert_rm.distributed.watchdog import FIRST_TIMES


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError("[/x/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.1]:2: Connection reset by peer"),
            True,
        ),
        (RuntimeError("[/x/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"), True),
        (dist.DistBackendError("NCCL error in: … remote process exited or there was a network error"), True),
        (RuntimeError("CUDA out of memory"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ConnectionResetError("Connection reset by peer"), False),
    ],
)
def test_only_errors_of_collectives_are_rank_failures(error: Exception, expected: bool) -> None:
    assert is_rank_failure(error) == expected


def test_groups_made_with_the_default_timeout_get_the_given_one() -> None:
    """DeepSpeed makes its groups without a timeout, so torch uses its default."""
    timeout = collective_timeout(100)
    assert timeout > timedelta(seconds=100 * FIRST_TIMES)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        groups = [dist.group.WORLD, dist.new_group([0])]
        found = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
        assert found[0] == timeout and found[1] != timeout
        set_collective_timeout(timeout)
        assert [group._get_backend(torch.device("cpu")).options._timeout for group in groups] == [timeout] * 2
    finally:
        dist.destroy_process_group()
