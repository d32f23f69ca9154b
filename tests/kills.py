"""Kill ranks at random moments, check the checkpoints after each kill, and compare the finished run's metrics."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from support import read_metrics, start_ranks, wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dnabert_rm.checkpoint.checksums import find_damage, read_checkpoint_manifest
from dnabert_rm.checkpoint.run_folder import LATEST_NAME, saved_steps, step_folder

TIMINGS = {
    "tokens_per_second",
    "tflops_per_rank",
    "mfu",
    "data_wait",
    "save_seconds",
    "validation_seconds",
    "memory_gb",
}
NUM_RANKS = 2


@dataclass
class Tally:
    """Counts of kills; `in_saves` of them left a folder that was being written or deleted."""

    kills: int = 0
    in_saves: int = 0
    before_first_step: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)


def kill_and_resume(
    words: Sequence[str | Path],
    folder: Path,
    num_kills: int,
    rng: random.Random,
    reference: Path,
    min_in_saves: int = 0,
) -> Tally:
    """Kill runs of `words` `num_kills` times, resume after each kill, and compare the finished runs with `reference`.

    If a run ends before `num_kills` is reached, it is compared and another run is started. Every second kill is aimed
    at a save. Kills continue, up to twice `num_kills`, until `min_in_saves` of them have hit a save.
    """
    tally = Tally()

    def needs_kill() -> bool:
        return tally.kills < num_kills or (tally.in_saves < min_in_saves and tally.kills < 2 * num_kills)

    while needs_kill():
        run = folder / f"run{tally.runs}"
        tally.runs += 1
        has_ended = False
        while not has_ended and needs_kill():
            has_ended = _start_and_kill(words, run, folder / "log", rng, tally)
        if not has_ended:
            codes = wait_for(start_ranks(NUM_RANKS, [*words, "--output", run], folder / "log"))
            if codes != [0] * NUM_RANKS:
                tally.problems.append(f"the last resume ended with {codes}: {_read_logs(folder / 'log')}")
        tally.problems += differences(run, reference)
        shutil.rmtree(run)
    return tally


def _start_and_kill(words: Sequence[str | Path], run: Path, log: Path, rng: random.Random, tally: Tally) -> bool:
    """Start the ranks and kill them at a random moment; return whether the run had ended before."""
    rows_before = _num_rows(run)
    ranks = start_ranks(NUM_RANKS, [*words, "--output", run], log)
    has_stepped = _wait_for_moment(run, ranks, rows_before, rng, at_save=bool(tally.kills % 2))
    victim = rng.randrange(NUM_RANKS)
    if not all(process.is_alive() for process in ranks):
        codes = wait_for(ranks)
        if codes != [0] * NUM_RANKS:
            tally.problems.append(f"a rank ended without a kill, {codes}: {_read_logs(log)}")
        return True
    ranks[victim].kill()
    # Kill the others as a launcher does once it notices that a rank has ended.
    time.sleep(rng.uniform(0, 0.2))
    for process in ranks:
        process.kill()
        process.join()
    tally.kills += 1
    tally.before_first_step += not has_stepped
    tally.in_saves += any((run / "checkpoints").glob(".step_*.tmp"))
    tally.problems += _broken_checkpoints(run)
    return False


def _wait_for_moment(run: Path, ranks: list[BaseProcess], rows_before: int, rng: random.Random, at_save: bool) -> bool:
    """Wait for the moment to kill: in a save, or at any time since the start; return whether a step was made."""
    if not at_save and rng.random() < 0.2:
        time.sleep(rng.uniform(0, 3))
        return _num_rows(run) != rows_before
    while all(process.is_alive() for process in ranks) and _num_rows(run) <= rows_before:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.6))
    while at_save and all(process.is_alive() for process in ranks):
        if any((run / "checkpoints").glob(".step_*.tmp")):
            time.sleep(rng.uniform(0, 0.03))
            break
        time.sleep(0.0005)
    return True


def _num_rows(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _read_logs(log: Path) -> str:
    return " | ".join(path.read_text()[-800:] for path in sorted(log.iterdir()))


def _broken_checkpoints(run: Path) -> list[str]:
    """Return the faults that a kill left: every step folder must be undamaged, and `latest` must name one of them."""
    problems = []
    for step in saved_steps(run):
        folder = step_folder(run, step)
        if damage := find_damage(folder, read_checkpoint_manifest(folder)):
            problems.append(f"visible but broken: {damage}")
    latest = run / "checkpoints" / LATEST_NAME
    if latest.exists() and not (latest.parent / latest.read_text().strip()).is_dir():
        problems.append(f"latest names {latest.read_text().strip()}, which is not there")
    return problems


def differences(run: Path, reference: Path) -> list[str]:
    """Return where a run's metrics differ from those of `reference`, bit for bit; times are not compared."""
    found, expected = ([_without_times(row) for row in read_metrics(folder)] for folder in (run, reference))
    problems = []
    if [row["step"] for row in found] != [row["step"] for row in expected]:
        problems.append(f"{run}: metrics.jsonl has the steps {[row['step'] for row in found]}")
    for row, other in zip(found, expected, strict=False):
        if row != other:
            problems.append(f"{run}: step {row['step']} has {row}, the reference {other}")
            break
    if (points := _points(run)) != _points(reference):
        problems.append(f"{run}: TensorBoard has the steps {[step for step, _ in points['train/loss']]}")
    return problems


def _without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in TIMINGS}


def _points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values of all TensorBoard curves except those of speed."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("train_speed/", "train/tokens_per_second"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
