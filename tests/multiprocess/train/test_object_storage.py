"""A run from s3:// has the losses of a run from the local folder, faults or not."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from s3_server import FAULTS, FaultyProxy, environment, moto_server, use
from support import random_bases, read_metrics, run_cli, start_ranks, wait_for, write_prepared

from data_prep import upload
from dnabert_rm.data.object_store import file_system
from dnabert_rm.utils.errors import EXIT_USER_ERROR

FLAGS = ["--preset", "tiny", "--steps", "8", "--global-batch", "8", "--window", "66", "--log-every", "1",
         "--model.num_layers", "1", "--model.hidden_size", "64"]  # fmt: skip
IMPATIENT = """
import sys
from dnabert_rm.cli.main import main
from dnabert_rm.data import object_store
object_store.PATIENCE_SECONDS = 0
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    write_prepared(tmp_path / "prepared", [[random_bases(rng, 700) for _ in range(4)] for _ in range(6)], k=4)
    return tmp_path / "prepared"


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run)]


def train(data: str | Path, tmp_path: Path, name: str, **variables: str) -> list[float]:
    words = [*FLAGS, "--data", data, "--output", tmp_path / name, "--data.cache_dir", tmp_path / f"cache-{name}"]
    ranks = start_ranks(1, words, tmp_path / f"log-{name}", **variables)
    assert wait_for(ranks, 200) == [0], (tmp_path / f"log-{name}" / "0.txt").read_text()
    return losses(tmp_path / name)


def test_a_run_from_s3_has_the_losses_of_the_local_run(prepared: Path, tmp_path: Path, monkeypatch) -> None:
    with moto_server() as port, FaultyProxy(port) as proxy:
        use(monkeypatch, proxy.url)
        file_system("s3://data").mkdir("data")
        upload.run(prepared, "s3://data/x")
        count, rng = itertools.count(), random.Random(0)
        # Every third request, so that a try fails only once.
        proxy.choose = lambda method, path: rng.choice(FAULTS) if next(count) % 3 == 1 else None
        remote = train("s3://data/x", tmp_path, "remote", **environment(proxy.url))
    assert sum(proxy.faults.values()) > 5
    local = train(prepared, tmp_path, "local")
    assert len(local) == 8 and remote == local


def test_a_server_that_stays_away_ends_a_run_in_one_line(prepared: Path, tmp_path: Path, monkeypatch) -> None:
    with FaultyProxy(0, lambda method, path: "drop") as proxy:
        use(monkeypatch, proxy.url)
        words = [*FLAGS, "--data", "s3://data/x", "--output", tmp_path / "run"]
        ended = run_cli("-c", IMPATIENT, "pretrain", *words)
    assert ended.returncode == EXIT_USER_ERROR
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "error:" in line]
    assert "s3://data/x/manifest.json: could not be fetched in 5 tries" in line
