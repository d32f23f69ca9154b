"""Builds of real genomes: identical bytes for any number of workers, and after any interruption."""

from __future__ import annotations

import gzip
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from builds import build, content
from support import ROOT, clean_environment

NUM_KILLS = 20


@pytest.fixture(scope="module")
def small(test_data: Path) -> list[str | Path]:
    names = ("ecoli_K12_MG1655.fa.gz", "dmelanogaster_1pct.fa.gz", "sars_cov_2_MN908947.fa")
    files = [test_data / "genomes" / name for name in names]
    return [
        *files,
        "--shard-tokens",
        "60000",
        "--segment-tokens",
        "20000",
        "--val-fraction",
        "0.1",
        "--record-soft-mask",
    ]


@pytest.fixture(scope="module")
def reference(small: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("reference") / "out"
    build(*small, "--out", out, "--workers", "1")
    found = content(out)
    assert len(found) > 90 and not any(name.startswith(".") for name in found)
    return found


@pytest.mark.parametrize("workers", ["2", "3"])
def test_bytes_do_not_depend_on_the_number_of_workers(
    small: list, reference: dict[str, bytes], tmp_path: Path, workers: str
) -> None:
    build(*small, "--out", tmp_path / "out", "--workers", workers)
    assert content(tmp_path / "out") == reference


def mpirun(*words: str | Path) -> subprocess.CompletedProcess[str]:
    if (program := shutil.which("mpirun", path=clean_environment()["PATH"])) is None:
        pytest.skip("mpirun is not installed")
    command = [program, "--oversubscribe", "-n", "3", sys.executable, "-m", "data_prep", "build", *map(str, words)]
    rooted = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**clean_environment(), **rooted},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_bytes_do_not_depend_on_mpi_ranks(small: list, reference: dict[str, bytes], tmp_path: Path) -> None:
    done = mpirun(*small, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "out") == reference


def test_an_error_under_mpi_is_reported_once(tmp_path: Path) -> None:
    done = mpirun(tmp_path / "absent.fa", "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("absent.fa: no such file") == 1


def test_a_build_killed_at_random_times_resumes_to_the_same_bytes(
    small: list, reference: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rng = random.Random(0)
    kills = 0
    shard_counts = set()
    command = [sys.executable, "-m", "data_prep", "build", *map(str, small), "--out", str(out), "--workers"]
    while kills < NUM_KILLS:
        # The moment is given as a number of shards, because the time that a build takes varies from one to the next.
        until = num_shards(out) + rng.randint(0, 25)
        delay = rng.uniform(0, 0.02)
        with subprocess.Popen(
            [*command, rng.choice(["1", "2"])], cwd=ROOT, env=clean_environment(), stdout=-3, stderr=-3
        ) as process:
            while process.poll() is None and num_shards(out) < until:
                time.sleep(0.001)
            time.sleep(delay)
            ended = process.poll()
            process.kill()
        if ended is not None:
            assert ended == 0 and content(out) == reference
            shutil.rmtree(out)
            continue
        kills += 1
        shards = list(out.glob("shard-*.tar"))
        shard_counts.add(len(shards))
        assert all(path.read_bytes() == reference[path.name] for path in shards), "a partial shard has its final name"
    assert len(shard_counts) > 3, "all kills came at the same stage"
    build(*small, "--out", out, "--workers", "2")
    assert content(out) == reference


def num_shards(out: Path) -> int:
    return sum(1 for _ in out.glob("shard-*.tar"))


def test_a_damaged_or_missing_shard_is_written_again(small: list, reference: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(*small, "--out", out)
    (out / "shard-000003.tar").chmod(0o644)
    (out / "shard-000003.tar").write_bytes(b"damaged")
    (out / "shard-000004.tar").unlink()
    done = build(*small, "--out", out)
    num_shards = sum(name.endswith(".tar") for name in reference)
    assert f"{num_shards - 2} of {num_shards} shards are already finished" in done.stderr
    assert content(out) == reference


def limit_file_size(process: int, size: int) -> None:
    """Limit the size of the files that a process and its workers write from now on."""
    build_process = psutil.Process(process)
    for each in (build_process, *build_process.children(recursive=True)):
        each.rlimit(psutil.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_reported_in_one_line_and_the_build_resumes(
    small: list, reference: dict[str, bytes], tmp_path: Path, workers: str
) -> None:
    """A limit on the file size simulates a disk that fills up: writes fail with the same kind of error."""
    out, files = tmp_path / "out", tmp_path / "files"
    files.mkdir()
    plain = []
    for path in small[:3]:
        data = Path(path).read_bytes()
        target = files / Path(path).name.removesuffix(".gz")
        target.write_bytes(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        plain.append(target)
    command = [sys.executable, "-m", "data_prep", "build", *map(str, [*plain, *small[3:]]), "--out", str(out)]
    # Coverage of the subprocess would write a file above the limit.
    environ = {name: value for name, value in clean_environment().items() if not name.startswith("COVERAGE")}
    with subprocess.Popen(
        [*command, "--workers", workers], cwd=ROOT, env=environ, stdout=-3, stderr=-1, text=True
    ) as process:
        while process.poll() is None and num_shards(out) < 3:
            time.sleep(0.001)
        limit_file_size(process.pid, 100_000)  # A shard has about 120,000 bytes; the last one of a split has fewer.
        printed = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert printed.count("\n") == 1 and f"{out}: File too large; free disk space" in printed
    finished, num = num_shards(out), sum(name.endswith(".tar") for name in reference)
    assert all(path.read_bytes() == reference[path.name] for path in out.glob("shard-*.tar"))
    assert not list(out.rglob("*.tmp")) and not (out / "manifest.json").exists()
    done = build(*plain, *small[3:], "--out", out, "--workers", workers)
    assert finished >= 3 and f"{finished} of {num} shards are already finished" in done.stderr
    shards = {name: data for name, data in content(out).items() if name.endswith(".tar")}
    assert shards == {name: data for name, data in reference.items() if name.endswith(".tar")}
