"""Runs on file systems that are slow, full or failing, or whose server loses files, as network file systems can be."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_nodes import require, until
from cluster_runs import ENDLESS, losses, steps
from faulty_mounts import faulty_mount, require_fuse
from support import random_bases, run_ranks, start_ranks, wait_for, write_prepared

from dnabert_rm.checkpoint.run_folder import complete_steps
from dnabert_rm.data.manifest import MANIFEST_NAME
from dnabert_rm.data.split_reader import SplitReader
from dnabert_rm.genome import kmer
from dnabert_rm.utils.errors import EXIT_RANK_FAILURE, EXIT_USER_ERROR, DataError

pytestmark = [require("fusermount3"), require_fuse(), pytest.mark.timeout(600)]

SHORT = ["--steps", "60", "--save-every", "20"]
SECOND = r"/\.step_00000040\.tmp/"
"""Files of the second checkpoint."""
SAVE_FAULTS = {
    "write": ({"operation": "write", "path": rf"{SECOND}.*\.npz", "error": "EIO"}, "check the file system"),
    "full": ({"operation": "write", "path": rf"{SECOND}.*\.npz", "error": "ENOSPC"}, "free space on disk"),
    "fsync": ({"operation": "fsync", "path": SECOND, "first": 3, "error": "ETIMEDOUT"}, "check the file system"),
    "close": (
        {"operation": "flush", "path": rf"{SECOND}.*optim_states\.pt", "error": "EIO", "loses_data": True, "times": 1},
        "a file is too short, so the disk is full or failing",
    ),
    "manifest": ({"operation": "rename", "path": rf"{SECOND}complete\.json", "error": "EIO"}, "check the file system"),
    "rename": ({"operation": "rename", "path": r"/step_00000040$", "error": "ETIMEDOUT"}, "check the file system"),
}


@pytest.fixture(scope="module")
def short_losses(flags, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the short run on a local disk."""
    folder = tmp_path_factory.mktemp("short") / "run"
    run_ranks(2, *flags, *SHORT, "--output", folder)
    return losses(folder)


def printed_errors(log: Path) -> list[str]:
    """Return the error lines of both ranks. There must be no traceback."""
    printed = "".join((log / f"{rank}.txt").read_text() for rank in range(2))
    assert "Traceback" not in printed, printed
    return [line for line in printed.splitlines() if "error:" in line]


@pytest.mark.parametrize("name", SAVE_FAULTS)
def test_a_fault_during_a_save_keeps_the_earlier_checkpoint(name: str, flags, short_losses, tmp_path: Path) -> None:
    """All ranks end with one line, and the same command resumes the run once the file system is well again."""
    fault, advice = SAVE_FAULTS[name]
    words = [*flags, *SHORT, "--output", tmp_path / "mount" / "run"]
    with faulty_mount(tmp_path / "disk", tmp_path / "mount") as mount:
        mount.set(faults=[fault])
        codes = wait_for(start_ranks(2, words, tmp_path / "log"))
        (error,) = printed_errors(tmp_path / "log")
        assert codes == [EXIT_USER_ERROR] * 2 and "cannot be written" in error and advice in error, error
        assert "the earlier checkpoints are unchanged" in error
        run = mount.source / "run"
        assert complete_steps(run) == [20] and not list((run / "checkpoints").glob(".*.tmp"))
        mount.set()
        assert "resuming at step 20 " in run_ranks(2, *words)
        assert losses(run) == short_losses and complete_steps(run) == [40, 60]


@pytest.mark.parametrize("content, reason", [
    ({"faults": [{"operation": "write", "path": "metrics.jsonl", "error": "ENOSPC"}]},
     "No space left on device; free space on disk"),
    ({"stale": "metrics.jsonl"}, "Stale file handle; check the file system"),
])  # fmt: skip
def test_metrics_that_cannot_be_written_end_the_run(
    content: dict[str, Any], reason: str, flags, short_losses, tmp_path: Path
) -> None:
    # A save waits for the one before. So the run is between steps 10 and 15 when the first checkpoint is there.
    words = [*flags, "--steps", "60", "--save-every", "5", "--output", tmp_path / "mount" / "run"]
    with faulty_mount(tmp_path / "disk", tmp_path / "mount") as mount:
        run = mount.source / "run"
        mount.set(delay_ms=2)
        ranks = start_ranks(2, words, tmp_path / "log")
        until(lambda: complete_steps(run), 240)
        mount.set(**content)
        codes = wait_for(ranks)
        (error,) = printed_errors(tmp_path / "log")
        assert codes == [EXIT_USER_ERROR, EXIT_RANK_FAILURE] and f"{tmp_path}/mount/run: {reason}, and start" in error
        assert 5 <= steps(run) < 60
        mount.set()
        assert f"resuming at step {complete_steps(run)[-1]} " in run_ranks(2, *words)
        assert losses(run) == short_losses


def test_a_run_continues_through_faults_that_do_no_harm(flags, short_losses, tmp_path: Path) -> None:
    """A slow file system, lost locks, a stop file that can't be looked up and an old checkpoint that can't be deleted.

    The checkpoint is deleted by the next start.
    """
    words = [*flags, *SHORT, "--output", tmp_path / "mount" / "run"]
    with faulty_mount(tmp_path / "disk", tmp_path / "mount") as mount:
        run = mount.source / "run"
        harmless = [
            {"operation": "getattr", "path": "/run/stop$", "error": "ETIMEDOUT"},
            {"operation": "rename", "path": r"\.step_00000020\.tmp$", "error": "EIO"},
        ]
        mount.set(delay_ms=2)
        ranks = start_ranks(2, words, tmp_path / "log")
        until(lambda: steps(run) >= 5, 240)
        mount.set(delay_ms=2, stale=r"/run/\.lock|/run/\.lease", faults=harmless)
        assert wait_for(ranks) == [0, 0] and not printed_errors(tmp_path / "log")
        assert losses(run) == short_losses and complete_steps(run) == [20, 40, 60]
        warnings = [line for line in (tmp_path / "log" / "0.txt").read_text().splitlines() if "warning:" in line]
        assert len(warnings) == 1 and "step_00000020: can't be deleted (Input/output error)" in warnings[0]
        mount.set()
        run_ranks(2, *flags, "--steps", "61", "--save-every", "20", "--allow-changes", "--output", mount.path / "run")
        assert complete_steps(run) == [60, 61]


@contextlib.contextmanager
def mounts_of_both_nodes(nodes, kind: str, tmp_path: Path) -> Iterator[Path]:
    """Mount one folder on both nodes at the path that is yielded; each node sees only its own mount.

    `kind` is "sshfs", or the kind of locks of a faulty mount.
    """
    mount = tmp_path / "mount"
    with contextlib.ExitStack() as stack:
        if kind != "sshfs":
            for node in nodes:
                stack.enter_context(faulty_mount(tmp_path / "disk", mount, node=node, locks=kind))
        else:
            for folder in (tmp_path / "disk", mount):
                folder.mkdir()
            for node in nodes:
                done = node.run("sshfs", f"n2:{tmp_path}/disk", mount)
                assert done.returncode == 0, done.stderr
                stack.callback(node.run, "fusermount3", "-u", "-z", mount)
        yield mount


def test_a_run_on_another_node_is_refused_although_locks_are_local(nodes, flags, tmp_path: Path) -> None:
    """After the first node's processes were killed, the second node resumes the run."""
    with mounts_of_both_nodes(nodes, "local", tmp_path) as mount:
        run, log = tmp_path / "disk" / "run", tmp_path / "log.txt"
        words = ["python", "launch_scripts/pretrain.sh", *flags, *ENDLESS, "--save-every", "20"]
        words += ["--output", str(mount / "run")]
        nodes[0].start(log, *words)
        until(lambda: steps(run) and complete_steps(run), 240, log.read_text)
        second = nodes[1].run(*words)
        assert second.returncode == EXIT_USER_ERROR and "another run uses this folder (host n1, " in second.stderr
        nodes[0].kill("pretrain.sh")
        done = steps(run)
        third = nodes[1].run(*words, "--stop-after", str(done + 2))
        assert third.returncode == 0, third.stderr
        assert "was last used by host n1, " in third.stderr and "resuming at step" in third.stderr
        assert len(losses(run)) == done + 2


_LOCKER = """
import sys, time
from pathlib import Path
from dnabert_rm.train.run_lock import RunLock, RunLockedError
from dnabert_rm.utils import lease
lease.HEARTBEAT_SECONDS, lease.EXPIRY_SECONDS = 1, 6
try:
    lock = RunLock(Path(sys.argv[1]))
except RunLockedError as error:
    sys.exit(str(error))
print("held", flush=True)
if sys.argv[2] == "keep":
    time.sleep(600)
lock.release()
"""


@pytest.mark.parametrize("kind", ["shared", "none", pytest.param("sshfs", marks=require("sshd", "ssh", "sshfs"))])
def test_only_one_node_locks_a_run_folder(nodes, kind: str, tmp_path: Path) -> None:
    with mounts_of_both_nodes(nodes, kind, tmp_path) as mount:
        log = tmp_path / "log.txt"
        program = tmp_path / "locker.py"
        program.write_text(_LOCKER)
        path = os.pathsep.join(sys.path)
        nodes[0].start(log, sys.executable, program, mount / "run", "keep", PYTHONPATH=path)
        until(lambda: "held" in log.read_text(), 60, log.read_text)
        second = nodes[1].run(sys.executable, program, mount / "run", "end", PYTHONPATH=path)
        assert second.returncode == 1 and "another run uses this folder (host n1, " in second.stderr
        nodes[0].kill("locker.py")
        third = nodes[1].run(sys.executable, program, mount / "run", "end", PYTHONPATH=path)
        assert third.returncode == 0 and "was last used by host n1, " in third.stderr
        fourth = nodes[0].run(sys.executable, program, mount / "run", "end", PYTHONPATH=path)
        assert fourth.returncode == 0 and not fourth.stderr, "a released folder is free at once"


def test_shards_behind_a_stale_cache_are_read_right_or_refused(tmp_path: Path) -> None:
    """Another node builds the data again while this one remembers the old files for three seconds.

    The new shards are as large as the old ones, and are there before the new manifest.
    """
    rng = np.random.default_rng(0)
    old, new = ([[random_bases(rng, 300)] for _ in range(2)] for _ in range(2))
    write_prepared(tmp_path / "disk" / "data", old, k=4)
    write_prepared(tmp_path / "other", new, k=4)
    with faulty_mount(tmp_path / "disk", tmp_path / "mount", cache_seconds=3) as mount:
        reader = SplitReader(mount.path / "data", "train")
        before = kmer.encode(old[0][0], 4).tolist()
        assert reader.tokens(0, 0, 0, 297).tolist() == before
        for path in (tmp_path / "other").glob("*.tar"):
            path.replace(mount.source / "data" / path.name)
        assert reader.tokens(0, 0, 0, 297).tolist() == before
        with pytest.raises(DataError, match=r"shard-000001\.tar: is damaged") as raised:
            reader.tokens(1, 0, 0, 297)
        assert "\n" not in str(raised.value)
        (tmp_path / "other" / MANIFEST_NAME).replace(mount.source / "data" / MANIFEST_NAME)
        time.sleep(3.5)
        found = SplitReader(mount.path / "data", "train").tokens(1, 0, 0, 297)
        assert found.tolist() == kmer.encode(new[1][0], 4).tolist()


@pytest.mark.parametrize("operation", ["open", "read"])
def test_a_shard_that_the_server_has_lost_is_refused_in_one_line(operation: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_prepared(tmp_path / "disk" / "data", [[random_bases(rng, 300)]], k=4)
    with faulty_mount(tmp_path / "disk", tmp_path / "mount") as mount:
        mount.set(faults=[{"operation": operation, "path": "shard", "error": "ESTALE"}])
        reader = SplitReader(mount.path / "data", "train")
        with pytest.raises(DataError, match=r"shard-000000\.tar: can't be read as a shard .*Stale file handle"):
            reader.tokens(0, 0, 0, 297)
        mount.set()
        assert len(reader.tokens(0, 0, 0, 297)) == 297
