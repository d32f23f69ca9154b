"""The build lock: a build that was killed does not block the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dnabert_rm.patches.pytorch_patches import BuildLock

BUILD = """
import sys
from dnabert_rm.patches.deepspeed_patches import import_deepspeed
import_deepspeed()
from torch.utils import cpp_extension
path = cpp_extension.load("answer", [sys.argv[1]], is_python_module=False)
print("built", path)
"""
HOLD = """
import sys, time
from dnabert_rm.patches.pytorch_patches import BuildLock
assert BuildLock(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(600)
"""
WAIT = """
import sys
from dnabert_rm.patches.pytorch_patches import BuildLock
BuildLock(sys.argv[1]).wait()
"""


def test_a_killed_build_does_not_block_the_next_one(tmp_path: Path) -> None:
    source, folder = tmp_path / "answer.cpp", tmp_path / "extensions" / "answer"
    source.write_text('extern "C" int answer() { return 42; }\n')
    folder.mkdir(parents=True)
    (folder / "lock").touch()  # the file that torch leaves behind when a build is killed
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder.parent)}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, source], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0 and "built" in done.stdout, done.stderr
    assert (folder / "answer.so").is_file()


def test_one_process_builds_while_another_waits_until_it_ends_or_dies(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        lock = BuildLock(path)
        assert not lock.try_acquire()
        with subprocess.Popen([sys.executable, "-c", WAIT, path]) as waiting:
            time.sleep(1)
            assert waiting.poll() is None
            holder.send_signal(signal.SIGKILL)
            assert waiting.wait(60) == 0
    assert lock.try_acquire()
    lock.release()
