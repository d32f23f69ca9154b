"""Runs of 2 ranks that are stopped, locked, hung or lose a rank. docs/training.md describes the behaviour."""

from __future__ import annotations

import contextlib
import http.server
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import random_bases, read_metrics, start_ranks, wait_for, write_prepared

from dnabert_rm.checkpoint.run_folder import FOLDER_NAME, complete_steps, step_folder
from dnabert_rm.checkpoint.save import check_checkpoint
from dnabert_rm.utils.errors import EXIT_HANG, EXIT_RANK_FAILURE, EXIT_STOPPED, EXIT_USER_ERROR

FLAGS = ["--preset", "tiny", "--steps", 100_000, "--global-batch", 8, "--window", 66, "--log-every", 1,
         "--save-every", 20, "--model.num_layers", 1, "--model.hidden_size", 64]  # fmt: skip
# A release has to pass 20; a few are enough to notice a regression.
NUM_MOMENTS = int(os.environ.get("DNABERT_RM_STOP_MOMENTS", "5"))

LIMIT = 4
"""The watchdog's limit in seconds; the stages of the start have four times as long."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    rng = np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=4)
    return folder


class RunOfTwo:
    """Two ranks of one run, killed at the end of the block if they are still running."""

    def __init__(self, prepared: Path, run: Path, log: Path, *extra: str | Path) -> None:
        self.run, self.log = run, log
        self.ranks = start_ranks(2, [*map(str, FLAGS), "--data", prepared, "--output", run, *extra], log)

    def __enter__(self) -> RunOfTwo:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            rank.kill()

    def steps(self) -> int:
        """Return the number of steps in metrics.jsonl."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def send(self, rank: int, number: signal.Signals) -> None:
        """Signal a rank and its loader processes, once the rank has installed its handlers."""
        caught = f"/proc/{self.ranks[rank].pid}/status"
        until(lambda: int(Path(caught).read_text().split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1)
        # DeepSpeed's launcher signals the loader processes too, and first.
        process = psutil.Process(self.ranks[rank].pid)
        for each in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def printed(self, rank: int) -> str:
        path = self.log / f"{rank}.txt"
        return path.read_text() if path.exists() else ""


def until(condition: Callable[[], object], seconds: float = 240) -> None:
    """Wait for a condition; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was never met"
        time.sleep(0.01)


@pytest.mark.timeout(1200)
def test_a_run_stops_at_any_moment_with_a_checkpoint_and_resumes_bit_for_bit(prepared: Path, tmp_path: Path) -> None:
    """SIGTERM to either rank at random moments, which include loading and saving; every other time twice.

    Then SIGUSR1 and the stop file once.
    """
    run = tmp_path / "run"
    rng = random.Random(0)
    done = 0
    slowest = 0.0
    for moment in range(NUM_MOMENTS + 2):
        with RunOfTwo(prepared, run, tmp_path / f"log{moment}") as ranks:
            # One of three moments is during the start, which takes at least two seconds; the others are in the loop.
            if moment % 3:
                until(lambda ranks=ranks, done=done: ranks.steps() > done)
            time.sleep(rng.uniform(0, 1 if moment % 3 else 3))
            victim = rng.randrange(2)
            signal_time = time.monotonic()
            if moment <= NUM_MOMENTS:
                ranks.send(victim, signal.SIGTERM if moment < NUM_MOMENTS else signal.SIGUSR1)
            else:
                until(lambda ranks=ranks, done=done: ranks.steps() > done)
                (run / "stop").touch()
            steps_at_signal = ranks.steps()
            if moment % 2:
                time.sleep(rng.uniform(0, 0.2))
                ranks.send(victim, signal.SIGTERM)
            codes = wait_for(ranks.ranks, 60)
            printed = ranks.printed(0)
            assert codes == [EXIT_STOPPED] * 2, printed
            if steps_at_signal > done:
                slowest = max(slowest, time.monotonic() - signal_time)
                # The step before the current one, which is logged late; the current step; one more if the current one
                # had already made its last sum; and one more, because a result is read after the next step is queued.
                assert ranks.steps() <= steps_at_signal + 4
            if ranks.steps():
                assert f"stopped on request with {ranks.steps()} of 100000 steps done" in printed
            else:
                assert "stopped on request before the first step; nothing was saved" in printed
        rows = read_metrics(run) if ranks.steps() else []
        assert [row["step"] for row in rows] == list(range(len(rows)))
        assert len(rows) >= done
        done = len(rows)
        assert complete_steps(run)[-1:] == ([done] if done else [])
        if done:
            check_checkpoint(step_folder(run, done))
        assert not list((run / FOLDER_NAME).glob(".step*")) and not (run / "stop").exists()
    assert done
    print(f"{NUM_MOMENTS} moments, {done} steps, slowest stop in the loop {slowest:.2f} s")
    assert slowest < 20

    last = str(done + 2)
    for folder in (run, tmp_path / "undisturbed"):
        with RunOfTwo(prepared, folder, tmp_path / "log", "--stop-after", last) as ranks:
            assert wait_for(ranks.ranks) == [0, 0], ranks.printed(0)
    stopped, undisturbed = ([row["loss"] for row in read_metrics(folder)] for folder in (run, tmp_path / "undisturbed"))
    assert stopped == undisturbed and len(stopped) == done + 2


def test_a_second_run_is_refused_and_the_first_continues(prepared: Path, tmp_path: Path) -> None:
    """Then a rank of the first run fails, and its folder is free again."""
    run = tmp_path / "run"
    with RunOfTwo(prepared, run, tmp_path / "first") as first:
        until(lambda: first.steps() > 20)
        before = (run / "config.toml").stat().st_mtime_ns
        with RunOfTwo(prepared, run, tmp_path / "second") as second:
            assert wait_for(second.ranks, 60) == [EXIT_USER_ERROR] * 2
        errors = [line for line in second.printed(0).splitlines() if "error" in line]
        assert len(errors) == 1 and f"{run}: another run uses this folder (host " in errors[0]
        assert f"process {first.ranks[0].pid}, since " in errors[0]
        assert "error" not in second.printed(1) and "Traceback" not in second.printed(0) + second.printed(1)
        assert (run / "config.toml").stat().st_mtime_ns == before
        steps = first.steps()
        until(lambda: first.steps() > steps)

        first.ranks[1].kill()
        assert wait_for(first.ranks, 60) == [EXIT_RANK_FAILURE, -signal.SIGKILL]
    printed = first.printed(0)
    errors = [line for line in printed.splitlines() if "another rank failed" in line]
    assert len(errors) == 1 and "Traceback" not in printed
    assert f"the last checkpoint is from step {complete_steps(run)[-1]}; run the same command" in errors[0]
    (trace,) = (run / "lost_ranks").iterdir()
    assert "Traceback" in trace.read_text() and str(trace) in errors[0]

    with RunOfTwo(prepared, run, tmp_path / "third") as third:
        until(lambda: "resuming at step" in third.printed(0))
        # Rows after the checkpoint have been dropped by now, and are written again.
        until(lambda: third.steps() > complete_steps(run)[0] + 20)
        third.ranks[0].kill()
        assert wait_for(third.ranks, 60) == [-signal.SIGKILL, EXIT_RANK_FAILURE], third.printed(1)
        assert "rank 1: another rank failed" in third.printed(1)


def test_a_rank_that_hangs_ends_the_run_with_the_stacks_of_the_others(prepared: Path, tmp_path: Path) -> None:
    """Suspending all ranks for longer than the limit, as in a suspended job, does not end the run."""
    run = tmp_path / "run"
    with RunOfTwo(prepared, run, tmp_path / "log", "--train.hang_timeout_seconds", str(LIMIT)) as ranks:
        until(lambda: ranks.steps() > 3)
        for number, pause in ((signal.SIGSTOP, 1.5 * LIMIT), (signal.SIGCONT, 0.0)):
            for rank in ranks.ranks:
                os.kill(rank.pid or 0, number)
            time.sleep(pause)
        steps = ranks.steps()
        until(lambda: ranks.steps() > steps + 1)
        os.kill(ranks.ranks[1].pid or 0, signal.SIGSTOP)
        start = time.monotonic()
        ranks.ranks[0].join(60)
        assert ranks.ranks[0].exitcode == EXIT_HANG, ranks.printed(0)
        assert LIMIT < time.monotonic() - start < LIMIT + 15
        (report,) = (run / "hangs").iterdir()
        (error,) = (line for line in ranks.printed(0).splitlines() if "waited" in line)
        # The other rank may have been suspended during a step or a save.
        assert error.startswith("rank 0: waited 4 s for: s")
        assert str(report) in error and "run the same command" in error
        text = report.read_text()
        assert "distributed_c10d.py" in text and "_rank_0" in report.name
        worker = text.split("loader worker, process ")[1]
        assert "_worker_loop" in worker


class StallingHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder. After `stalls` is set, shards are never sent."""

    stalls = threading.Event()

    def do_GET(self) -> None:
        if self.path.endswith(".tar") and self.stalls.is_set():
            time.sleep(300)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_a_loader_that_hangs_ends_the_run_with_the_stacks_of_its_worker(prepared: Path, tmp_path: Path) -> None:
    """Shards are fetched again, from a server that no longer answers."""
    cache, run = tmp_path / "cache", tmp_path / "run"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(StallingHandler, directory=str(prepared)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    extra = ["--data", f"http://127.0.0.1:{server.server_address[1]}", "--data.cache_dir", cache,
             "--train.hang_timeout_seconds", LIMIT]  # fmt: skip
    with RunOfTwo(prepared, run, tmp_path / "log", *map(str, extra)) as ranks:
        until(lambda: ranks.steps() > 3)
        StallingHandler.stalls.set()
        for shard in cache.glob("*.tar"):
            shard.unlink()
        assert wait_for(ranks.ranks, 60) == [EXIT_HANG] * 2, ranks.printed(0) + ranks.printed(1)
    reports = {path.name[-5]: path.read_text() for path in (run / "hangs").iterdir()}
    assert sorted(reports) == ["0", "1"]
    hung = [rank for rank, text in reports.items() if f"rank {rank}: waited 4 s for: loader" in text]
    assert hung
    for rank in hung:
        main, worker = reports[rank].split("loader worker, process ")
        assert "dataloader.py" in main
        # If two workers need the same shard, one of them waits for the other's lock.
        assert "object_store.py" in worker or "_locked" in worker
    assert any("object_store.py" in text for text in reports.values())
