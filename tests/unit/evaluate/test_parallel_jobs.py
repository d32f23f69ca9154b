"""Parallel jobs: slots, failures, and no process outlives its parent."""

import functools
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dnabert_rm.evaluate import parallel_jobs
from dnabert_rm.evaluate.run_suite import duration


def python_job(tmp_path, name, script):
    return parallel_jobs.ChildProcess([sys.executable, "-c", script], tmp_path / f"{name}.txt")


def test_jobs_share_slots_and_fail_alone(tmp_path):
    script = "import os, sys; print(os.environ['SLOT']); sys.exit({})"
    all_jobs = [python_job(tmp_path, number, script.format(3 * (number == 1))) for number in range(4)]
    all_jobs.append(python_job(tmp_path, 4, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    finished = list(parallel_jobs.run_jobs(all_jobs, [{"SLOT": "a"}, {"SLOT": "b"}]))
    assert {job.index: job.code for job in finished} == {0: 0, 1: 3, 2: 0, 3: 0, 4: -9}
    assert {parallel_jobs.last_line(job.log) for job in all_jobs[:2]} == {"a", "b"}
    assert parallel_jobs.last_line(all_jobs[4].log) == "(the log is empty)"


def test_jobs_run_in_parallel_and_are_prepared_when_they_start(tmp_path):
    """Each of two jobs waits for the other's file, so they would not finish one after the other."""
    prepared = []

    def generate_jobs():
        for number in range(3):
            prepared.append(number)
            wait = f"""
import pathlib, time
pathlib.Path({str(tmp_path)!r}, 'here{number}').touch()
while {number} < 2 and not pathlib.Path({str(tmp_path)!r}, 'here{1 - number}').exists(): time.sleep(0.01)
"""
            yield python_job(tmp_path, number, wait)

    running = parallel_jobs.run_jobs(generate_jobs(), [{}, {}])
    first = next(running)
    assert prepared == [0, 1] and first.code == 0
    assert len(list(running)) == 2 and prepared == [0, 1, 2]


def test_jobs_are_terminated_when_the_loop_is_left(tmp_path):
    all_jobs = [python_job(tmp_path, 0, ""), python_job(tmp_path, 1, "import time; time.sleep(600)")]
    before = set(psutil.Process().children())  # other tests' fork server
    running = parallel_jobs.run_jobs(all_jobs, [{}, {}])
    next(running)
    [child] = set(psutil.Process().children()) - before
    start = time.monotonic()
    running.close()
    assert not child.is_running() and time.monotonic() - start < parallel_jobs._TERMINATE_SECONDS, (
        "killed, not terminated"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_die_with_their_parent(tmp_path, number):
    script = f"""
import pathlib, sys
from dnabert_rm.evaluate import parallel_jobs, run_suite
command = [sys.executable, "-c", "import time; time.sleep(600)"]
job = parallel_jobs.ChildProcess(command, pathlib.Path({str(tmp_path)!r}, "log.txt"))
with run_suite._stop_on_signals():
    list(parallel_jobs.run_jobs([job], [{{}}]))
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    while not children:
        time.sleep(0.05)
        children = psutil.Process(parent.pid).children()
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=30)
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert ("StoppedError: stopped by SIGTERM" in errors) == (number == signal.SIGTERM)


def test_a_job_ends_if_its_parent_died_before_prctl():
    # As if the parent died between fork and prctl: the expected parent is not the actual one.
    setup = functools.partial(parallel_jobs._die_with_parent, os.getpid() + 1)
    job = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=setup)
    assert job.wait(timeout=30) == -signal.SIGKILL


def test_slots_share_gpus_or_cpu_threads(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-ab")
    assert parallel_jobs.visible_gpus() == ["3", "GPU-ab"]
    slots = parallel_jobs.slot_environments(3, parallel_jobs.visible_gpus())
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["3", "GPU-ab", "3"]
    for no_gpu in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", no_gpu)
        assert parallel_jobs.visible_gpus() == []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert parallel_jobs.slot_environments(3, []) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert parallel_jobs.slot_environments(1, []) == [{}]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert parallel_jobs.slot_environments(3, []) == [{}] * 3


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.4, 61, 3599, 7261)] == [
        "0 s",
        "59 s",
        "1 min 1 s",
        "59 min 59 s",
        "2 h 1 min",
    ]
