"""Processes side by side: places, failures, and that none outlives its parent."""

import functools
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dnabert_rm.evaluate import jobs
from dnabert_rm.evaluate.run_suite import duration


def python_job(tmp_path, name, script):
    return jobs.Job([sys.executable, "-c", script], tmp_path / f"{name}.txt")


def test_jobs_share_slots_and_fail_alone(tmp_path):
    script = "import os, sys; print(os.environ['PLACE']); sys.exit({})"
    asked = [python_job(tmp_path, number, script.format(3 * (number == 1))) for number in range(4)]
    asked.append(python_job(tmp_path, 4, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    ended = list(jobs.run_jobs(asked, [{"PLACE": "a"}, {"PLACE": "b"}]))
    assert {end.number: end.code for end in ended} == {0: 0, 1: 3, 2: 0, 3: 0, 4: -9}
    assert {jobs.last_line(job.log) for job in asked[:2]} == {"a", "b"}
    assert jobs.last_line(asked[4].log) == "(the log is empty)"


def test_jobs_run_side_by_side_and_are_prepared_when_they_start(tmp_path):
    """Each of two waits for the other's file, so one after the other they would never end."""
    prepared = []

    def told():
        for number in range(3):
            prepared.append(number)
            wait = f"""
import pathlib, time
pathlib.Path({str(tmp_path)!r}, 'here{number}').touch()
while {number} < 2 and not pathlib.Path({str(tmp_path)!r}, 'here{1 - number}').exists(): time.sleep(0.01)
"""
            yield python_job(tmp_path, number, wait)

    running = jobs.run_jobs(told(), [{}, {}])
    first = next(running)
    assert prepared == [0, 1] and first.code == 0
    assert len(list(running)) == 2 and prepared == [0, 1, 2]


def test_no_job_stays_when_the_loop_is_left(tmp_path):
    asked = [python_job(tmp_path, 0, ""), python_job(tmp_path, 1, "import time; time.sleep(600)")]
    before = set(psutil.Process().children())  # other tests' fork server
    running = jobs.run_jobs(asked, [{}, {}])
    next(running)
    [child] = set(psutil.Process().children()) - before
    begun = time.monotonic()
    running.close()
    assert not child.is_running() and time.monotonic() - begun < jobs._SECONDS_TO_END, "killed, not asked to end"


@pytest.mark.skipif(sys.platform != "linux", reason="the system kills children with their parent on Linux alone")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_die_with_their_parent(tmp_path, number):
    script = f"""
import pathlib, sys
from dnabert_rm.evaluate import jobs, run_suite
job = jobs.Job([sys.executable, "-c", "import time; time.sleep(600)"], pathlib.Path({str(tmp_path)!r}, "log.txt"))
with run_suite._stop_on_signals():
    list(jobs.run_jobs([job], [{{}}]))
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


def test_a_job_whose_parent_died_before_it_began_ends():
    # The window between fork and prctl, held open: the parent that the job is told of is not the one it has.
    gone = functools.partial(jobs._die_with_parent, os.getpid() + 1)
    job = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=gone)
    assert job.wait(timeout=30) == -signal.SIGKILL


def test_places_for_jobs(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-ab")
    assert jobs.visible_gpus() == ["3", "GPU-ab"]
    coordinates = jobs.slot_variables(3, jobs.visible_gpus())
    assert [place["CUDA_VISIBLE_DEVICES"] for place in coordinates] == ["3", "GPU-ab", "3"]
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert jobs.visible_gpus() == []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert jobs.slot_variables(3, []) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert jobs.slot_variables(1, []) == [{}]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert jobs.slot_variables(3, []) == [{}] * 3


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.4, 61, 3599, 7261)] == [
        "0 s", "59 s", "1 min 1 s", "59 min 59 s", "2 h 1 min",
    ]  # fmt: skip
