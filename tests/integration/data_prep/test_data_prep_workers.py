"""Worker processes and MPI ranks of data_prep: all work, none outlives its parent, and a death is reported."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT, clean_environment


def test_every_rank_works(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(
        "import time\nfrom data_prep.parallel import open_executor, run_all\n"
        "def rank(_):\n    from mpi4py import MPI\n    time.sleep(0.02)\n    return MPI.COMM_WORLD.Get_rank()\n"
        "with open_executor(1) as executor:\n    if executor is not None:\n"
        "        print(sorted({r for _, r in run_all(executor, rank, range(20))}))\n"
    )
    if (program := shutil.which("mpirun", path=clean_environment()["PATH"])) is None:
        pytest.skip("mpirun is not installed")
    rooted = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = [program, "--oversubscribe", "-n", "3", sys.executable, str(script)]
    environment = {**clean_environment(), **rooted, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "[0, 1, 2]\n", done.stderr


def test_a_single_rank_of_unknown_number_has_worker_processes(tmp_path: Path) -> None:
    """Without the number of ranks in the environment, MPI is asked; then workers can't be forked."""
    pytest.importorskip("mpi4py")  # not mpi4py.MPI, which would start MPI in this process
    script = tmp_path / "rank.py"
    script.write_text(
        "import os\nfrom data_prep.parallel import open_executor, run_all\n"
        "def process_of(_):\n    return os.getpid()\n"
        "if __name__ == '__main__':\n    with open_executor(2) as executor:\n"
        "        print(os.getpid() in {pid for _, pid in run_all(executor, process_of, range(4))})\n"
    )
    environment = {**clean_environment(), "PMIX_RANK": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("threads", [0, 1], ids=["forked", "spawned"])
def test_workers_end_with_their_parent(tmp_path: Path, threads: int) -> None:
    """A parent killed by SIGKILL can't stop its workers, so they must notice its death."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, threading, time\nfrom data_prep.parallel import open_executor, run_all\n"
        "def work(path):\n    open(f'{path}-{os.getpid()}', 'w').close()\n    time.sleep(60)\n"
        f"if __name__ == '__main__':\n    for _ in range({threads}):\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "    with open_executor(2) as executor:\n"
        f"        list(run_all(executor, work, [{str(tmp_path / 'pid')!r}] * 2))\n"
    )
    environment = {**clean_environment(), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(script)], env=environment) as parent:
        wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
        parent.send_signal(signal.SIGKILL)
    pids = [int(path.name.partition("-")[2]) for path in tmp_path.glob("pid-*")]
    wait_for(lambda: not any(is_running(pid) for pid in pids))


@pytest.mark.parametrize("pause_seconds", [0, 0.5], ids=["after all items are submitted", "while items are submitted"])
def test_the_death_of_a_worker_is_reported_in_one_line(tmp_path: Path, pause_seconds: float) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, time\nfrom data_prep.parallel import open_executor, run_all\n"
        "from dnabert_rm.utils.errors import run_command\n"
        "class Items(list):\n    def __iter__(self):\n        for item in super().__iter__():\n"
        f"            yield item\n            time.sleep({pause_seconds})\n"
        "def work(_):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def main():\n    with open_executor(2) as executor:\n        list(run_all(executor, work, Items(range(4))))\n"
        "if __name__ == '__main__':\n    raise SystemExit(run_command('prep', main))\n"
    )
    environment = {**clean_environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "a worker process was killed" in done.stderr


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
