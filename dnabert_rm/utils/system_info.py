"""Versions, commit, hardware and command line of a run, for `environment.json`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("dnabert_rm", "torch", "deepspeed", "transformers", "webdataset", "numpy", "accelerate", "mpi4py")


def describe_environment(world_size: int) -> dict[str, Any]:
    """Return the content of `environment.json`. Values that can't be determined are None."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "commit": code_commit(),
        "host": platform.node(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "world_size": world_size,
        "threads_per_rank": torch.get_num_threads(),
    }


def package_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def code_commit() -> str | None:
    """Return the commit of the package's Git checkout, or None if there is no checkout.

    If files were modified, "+changes" is appended to the commit.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "setup.py").is_file():
        # An installed copy: a Git repository around it belongs to another project.
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
