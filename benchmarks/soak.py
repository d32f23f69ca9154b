"""An hour of pretraining with everything that goes wrong in a month, and the memory of its processes.

    python benchmarks/soak.py [--minutes 60] [--picture soak.png] --folder DIR

Two ranks train on shards from a local S3 server, with a checkpoint and a validation every 200 steps. The cache holds
half of the shards, so they are fetched again and again. In the first half nothing ends the run, but the server answers
no request for 15 seconds out of every 120. In the second half, every three minutes in turn: a rank is killed, the disk
of the run folder fills up, the launcher gets SIGTERM; then the same command is started again. The run folder is on a
file system of its own in memory, which takes root to mount.

Prints the largest memory of each process, its slope, the files left over, and PASS or FAIL. FAIL: a
file that should not be there, a step of `metrics.jsonl` that is missing or there twice, an exit code that is not the
documented one, private memory that grows by more than 1 MiB an hour beyond twice its error, or no slope at all. The
slope is fitted to the second half of a start: until then pages that a loader shares with its rank become its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.pop(0)  # this folder, whose data_prep.py would hide the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from s3_server import FaultyProxy, environment, moto_server
from support import random_bases, read_metrics, write_prepared

from data_prep import upload
from dnabert_rm.checkpoint.run_folder import saved_steps
from dnabert_rm.data.object_store import file_system

FLAGS = shlex.split(
    "--preset tiny --model.num_layers 1 --model.hidden_size 64 --model.dropout 0.1 --steps 100000000 --global-batch 8 "
    "--window 66 --workers 1 --log-every 1 --save-every 200 --validation.every 200 --train.keep_last 2 "
    "--data.cache_gb 0.0003 --optim.schedule constant --phase-ends 1000,2000,3000,4000,100000000 "
    "--train.threads_per_rank 1"
)
NUM_RANKS = 2
SAMPLE_SECONDS = 5
FITTED_SECONDS = 600
"""Shortest half of a start to fit a slope to."""
OUTAGE_SECONDS, OUTAGE_EVERY = 15, 120
EVENT_EVERY = 180
DISK_MIB = 160
SLOPE_LIMIT = 1.0
MINIMUM_MINUTES = 45
"""Half of them is the first start, and half of that start has to be at least `FITTED_SECONDS` long."""
# A killed rank: 71 from another rank, or the launcher's 247 (256 - SIGKILL), whichever it sees first.
EXPECTED_CODES = {"killed rank": [71, 247], "full disk": [2], "SIGTERM": [75]}


@dataclass
class Start:
    """One start of the run: its launcher, the memory of its processes in MiB by kind, and how it ended."""

    launcher: subprocess.Popen
    began: float
    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    ended_by: str = ""
    code: int | None = None


def main() -> int:
    """Run the hour and print what was seen. Return exit code 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if args.minutes < MINIMUM_MINUTES:
        parser.error(f"--minutes {args.minutes:g}: must be at least {MINIMUM_MINUTES}, so that a slope can be fitted")
    args.folder.mkdir(parents=True)
    with moto_server() as port, FaultyProxy(port) as proxy, _own_disk(args.folder / "disk") as disk:
        os.environ.update(environment(proxy.url))
        make_data(args.folder / "data")
        starts = soak(args.folder, disk, proxy, args.minutes * 60)
        problems = report(starts, disk, args.folder, proxy)
    if args.picture:
        draw(starts, args.picture)
    print(*problems, "FAIL" if problems else "PASS", sep="\n")
    return bool(problems)


def make_data(folder: Path) -> None:
    """Upload a prepared data set of 24 shards, one of them for validation."""
    rng = np.random.default_rng(0)
    pieces = [[random_bases(rng, 6000) for _ in range(2)] for _ in range(24)]
    write_prepared(folder, pieces, k=4, splits={0: "val"})
    file_system("s3://soak").mkdir("soak")
    upload.run(folder, "s3://soak/data")


@contextlib.contextmanager
def _own_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def soak(folder: Path, disk: Path, proxy: FaultyProxy, seconds: float) -> list[Start]:
    """Run for `seconds` and return the starts; the last one is ended by SIGTERM."""
    began = time.monotonic()
    proxy.choose = lambda method, path: "drop" if (time.monotonic() - began) % OUTAGE_EVERY < OUTAGE_SECONDS else None
    starts = [start_run(folder, disk)]
    try:
        watch(starts, folder, disk, began, seconds)
        end(starts[-1], "SIGTERM", disk)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(starts[-1].launcher.pid, signal.SIGTERM)
    return starts


def watch(starts: list[Start], folder: Path, disk: Path, began: float, seconds: float) -> None:
    """Sample memory, make the events happen, and start again after each end; `starts` gets the new starts."""
    events = iter(("killed rank", "full disk", "SIGTERM") * 1000)
    next_event = began + seconds / 2
    while time.monotonic() - began < seconds:
        time.sleep(SAMPLE_SECONDS)
        sample(starts[-1], began)
        if starts[-1].launcher.poll() is not None:
            starts[-1].ended_by, starts[-1].code = "nothing that was meant to", starts[-1].launcher.returncode
            starts.append(start_run(folder, disk))
        if time.monotonic() < next_event or not processes(starts[-1].launcher.pid)["rank"]:
            continue
        end(starts[-1], next(events), disk)
        starts.append(start_run(folder, disk))
        next_event = time.monotonic() + EVENT_EVERY


def start_run(folder: Path, disk: Path) -> Start:
    """Start the launcher. Its temporary files go to a folder that must be empty at the end."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    words = ["--gpus", str(NUM_RANKS), *FLAGS, "--data", "s3://soak/data", "--data.cache_dir", folder / "cache"]
    with open(folder / "log.txt", "a") as log:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "dnabert_rm", "pretrain", *map(str, words), "--output", str(disk / "run")],
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": str(temporary), "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,
        )
    return Start(launcher, time.monotonic())


def end(start: Start, event: str, disk: Path) -> None:
    """Make `event` happen, wait until the launcher has ended, and free the disk."""
    start.ended_by = event
    ballast = disk / "ballast"
    if event == "killed rank":
        os.kill(processes(start.launcher.pid)["rank"][-1], signal.SIGKILL)
    elif event == "SIGTERM":
        start.launcher.send_signal(signal.SIGTERM)
    else:
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
    try:
        start.code = start.launcher.wait(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(start.launcher.pid, signal.SIGKILL)
        start.code = start.launcher.wait()
    ballast.unlink(missing_ok=True)


def processes(launcher: int) -> dict[str, list[int]]:
    """Return the ids of the launcher's ranks and of their loader processes."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(folder.name))
    ranks = [process for process in sorted(parents.get(launcher, [])) if _is_rank(process)]
    if not ranks:
        ranks = [p for child in parents.get(launcher, []) for p in sorted(parents.get(child, [])) if _is_rank(p)]
    loaders = [child for rank in ranks for child in sorted(parents.get(rank, []))]
    return {"rank": ranks, "loader": loaders}


def _is_rank(process: int) -> bool:
    with contextlib.suppress(OSError):
        return b"LOCAL_RANK=" in Path(f"/proc/{process}/environ").read_bytes()
    return False


def sample(start: Start, began: float) -> None:
    """Add the private memory of each process: what would be free without it."""
    for kind, ids in processes(start.launcher.pid).items():
        for number, process in enumerate(ids):
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                kilobytes = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
                start.samples.setdefault(f"{kind} {number}", []).append((time.monotonic() - began, kilobytes / 1024))


def slope(samples: list[tuple[float, float]]) -> tuple[float, float] | None:
    """Return MiB an hour in the second half of a start, and its error. None if that is under `FITTED_SECONDS`.

    The line goes through eight means of neighbours: memory goes up and down with saves, so single samples are not
    independent.
    """
    times, sizes = np.array(samples).T
    kept = times >= (times[0] + times[-1]) / 2
    if times[-1] - times[kept][0] < FITTED_SECONDS:
        return None
    times, sizes = times[kept], sizes[kept]
    blocks = np.array([part.mean() for part in np.array_split(sizes, 8)])
    middles = np.array([part.mean() for part in np.array_split(times, 8)]) / 3600
    fit, covariance = np.polyfit(middles, blocks, 1, cov=True)
    return float(fit[0]), float(np.sqrt(covariance[0, 0]))


def report(starts: list[Start], disk: Path, folder: Path, proxy: FaultyProxy) -> list[str]:
    """Print the figures, and return what is wrong."""
    problems = []
    num_fitted = 0
    steps = [row["step"] for row in read_metrics(disk / "run")]
    print(f"{len(steps):,} steps in {len(starts)} starts; {sum(proxy.faults.values()):,} requests without an answer")
    if steps != list(range(len(steps))):
        problems.append(f"metrics.jsonl has {len(steps)} rows, the last of step {steps[-1]}")
    for number, start in enumerate(starts, 1):
        largest = {kind: max(size for _, size in samples) for kind, samples in start.samples.items()}
        told = ", ".join(f"{kind} {size:.0f} MiB" for kind, size in largest.items())
        print(f"start {number}: {told}; ended by {start.ended_by}, code {start.code}")
        if start.code not in EXPECTED_CODES.get(start.ended_by, []):
            problems.append(f"start {number} ended with code {start.code} after {start.ended_by}")
        for kind, samples in start.samples.items():
            fitted = slope(samples)
            if fitted is None:
                continue
            num_fitted += 1
            print(f"  {kind}: {fitted[0]:+.2f} MiB an hour, error {fitted[1]:.2f}")
            if fitted[0] - 2 * fitted[1] > SLOPE_LIMIT:
                problems.append(f"start {number}: memory of {kind} grows by {fitted[0]:.1f} MiB an hour")
    if not num_fitted:
        problems.append("no slope of memory was measured: every start was too short")
    (folder / "samples.json").write_text(json.dumps([[start.ended_by, start.samples] for start in starts]))
    return problems + left_over(starts, disk / "run", folder)


def left_over(starts: list[Start], run: Path, folder: Path) -> list[str]:
    """Return a line for each file that should not be there after a run has ended."""
    checkpoints = {f"step_{step:08d}" for step in saved_steps(run)}
    print(f"checkpoints: {', '.join(sorted(checkpoints))}")
    wrong = [path for path in (run / "checkpoints").iterdir() if path.is_dir() and path.name not in checkpoints]
    wrong += [path for path in run.rglob("*") if path.name.endswith((".tmp", ".partial", ".writing"))]
    # A process that was killed can't remove its folder of sockets; PyTorch makes a cache.
    allowed = sum(start.ended_by == "killed rank" for start in starts) * NUM_RANKS
    sockets = sorted((folder / "tmp").glob("pymp-*"))
    wrong += sockets[allowed:]
    wrong += [path for path in (folder / "tmp").iterdir() if not path.name.startswith(("pymp-", "torchinductor_"))]
    used = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    print(json.dumps({"run folder": sorted(path.name for path in run.iterdir()), "cache bytes": used}))
    return [f"left over: {path}" for path in sorted(set(wrong))]


def draw(starts: list[Start], picture: Path) -> None:
    """Plot the memory of every process over the hour, with the ends of the starts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
    colours = {"rank 0": "#1f77b4", "rank 1": "#7fb3dd", "loader 0": "#d95f02", "loader 1": "#f2a774"}
    for number, start in enumerate(start for start in starts if start.samples):
        for kind, samples in start.samples.items():
            times, sizes = np.array(samples).T
            label = kind if number == 0 else None
            axes.plot(times / 60, sizes, color=colours.get(kind, "grey"), linewidth=1.2, label=label)
        if start is not starts[-1]:
            last = max(samples[-1][0] for samples in start.samples.values()) / 60
            axes.axvline(last, color="grey", linewidth=0.6, linestyle=":")
            axes.text(last, 1.01, start.ended_by, rotation=35, fontsize=7, transform=axes.get_xaxis_transform())
    axes.set(xlabel="minutes", ylabel="private memory (MiB)", ylim=(0, None))
    axes.legend(ncols=4, fontsize=8, loc="lower left", frameon=False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
