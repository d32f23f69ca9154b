"""The real commands on real genomes: whole, byte for byte the same however they run, and clear when they can't."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import pty
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import webdataset
from slow_fasta import slow_file, slow_runs
from support import ROOT, clean_environment, run_cli

from data_prep.cli import main
from dnabert_rm.shards import load_manifest

NUM_KILLS = 20


def build(*words: str | Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_prep", "build", *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env={**clean_environment(), **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tar_urls(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("shard-*.tar"))]


@pytest.fixture(scope="module")
def genomes(test_data: Path) -> list[Path]:
    return sorted((test_data / "genomes").glob("*.fa*"))


@pytest.fixture(scope="module")
def all_genomes(genomes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("all") / "out"
    build(*genomes, "--out", out, "--workers", "2", "--shard-tokens", "5000000")
    return out


def test_every_base_of_the_real_genomes_comes_back(all_genomes: Path, genomes: list[Path], test_data: Path) -> None:
    """Read with plain webdataset and DNABERT's own vocabulary file, and with none of our code."""
    words = np.array((test_data / "dnabert" / "6" / "vocab.txt").read_text().split(), dtype="S6")
    records = {
        (path.name.partition(".")[0], name): np.frombuffer(sequence.upper().encode(), np.uint8)
        for path in genomes
        for name, sequence in slow_file(path)
    }
    token_seen = {key: np.zeros(len(sequence), dtype=bool) for key, sequence in records.items()}
    keys = set()
    dataset = webdataset.WebDataset(tar_urls(all_genomes), shardshuffle=False).decode()
    for sample in dataset:
        meta, ids = sample["json"], sample["ids.npy"]
        assert ids.dtype == np.uint16 and ids.ndim == 1 and meta["split"] == "train"
        key, start = (meta["genome"], meta["contig"]), meta["start"]
        expected = np.lib.stride_tricks.sliding_window_view(records[key][start : meta["end"]], 6)
        assert (words[ids].view(np.uint8).reshape(-1, 6) == expected).all()
        assert not token_seen[key][start : start + len(ids)].any()
        token_seen[key][start : start + len(ids)] = True
        assert sample["__key__"] not in keys
        keys.add(sample["__key__"])
    for key, sequence in records.items():
        expected_tokens = np.zeros(len(sequence), dtype=bool)
        for start, end in slow_runs(sequence.tobytes().decode(), 6):
            expected_tokens[start : end - 5] = True
        assert (token_seen[key] == expected_tokens).all(), key
    accounts = {(contig.genome, contig.contig): contig for contig in load_manifest(all_genomes).contigs}
    assert list(accounts) == list(records)
    for key, sequence in records.items():
        stored = sum(end - start for start, end in slow_runs(sequence.tobytes().decode(), 6))
        assert accounts[key].length == len(sequence) == stored + sum(accounts[key].left_out.values())
    assert sum(contig.length for contig in accounts.values()) == 21_734_086


def test_gaps_and_other_letters_split_where_they_stand(all_genomes: Path, genomes: list[Path]) -> None:
    spans: dict[str, list[tuple[int, int]]] = {}
    for sample in webdataset.WebDataset(tar_urls(all_genomes), shardshuffle=False).decode():
        meta = sample["json"]
        spans.setdefault(f"{meta['genome']}:{meta['contig']}", []).append((meta["start"], meta["end"]))
    human = sorted(spans["human_hg38_chr2_1-2333275:chr2"])
    assert human[0][0] == 10_000 and human[-1][1] == 2_333_275, "10,000 N stand first, the last base is stored"
    (virus,) = spans["sars_cov_2_MN908947:MN908947.3"]
    assert virus == (0, 29_903)
    letters = set()
    for name, sequence in slow_file(genomes[0]):
        found = spans[f"athaliana_1pct:{name}"]
        for match in re.finditer("[^ACGT]+", sequence.upper()):
            letters |= set(match.group())
            assert not any(first < match.end() and match.start() < last for first, last in found), "inside a segment"
        for start, end in slow_runs(sequence, 6):
            assert any(first == start for first, _ in found) and any(last == end for _, last in found)
    assert letters == set("NYKS")


def test_verify_agrees(all_genomes: Path) -> None:
    done = run_cli("-m", "data_prep", "verify", all_genomes)
    assert (done.returncode, done.stderr) == (0, "") and "are what the manifest says" in done.stdout


def test_verify_ends_with_1_and_names_the_shard(all_genomes: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(all_genomes, tmp_path / "copy"))
    path = Path(tar_urls(copy)[2])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    done = run_cli("-m", "data_prep", "verify", copy, "--workers", "2")
    assert done.returncode == 1 and path.name in done.stdout and "checksum" in done.stdout


# What follows is built of the small genomes, cut into many shards.


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


def test_a_mistake_under_mpi_is_told_once(tmp_path: Path) -> None:
    done = mpirun(tmp_path / "absent.fa", "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("absent.fa: no such file") == 1


def test_every_rank_takes_part(tmp_path: Path) -> None:
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


def test_a_build_killed_at_many_moments_ends_the_same(small: list, reference: dict[str, bytes], tmp_path: Path) -> None:
    out, moments, kills, seen = tmp_path / "out", random.Random(0), 0, set()
    start = time.monotonic()
    build(*small, "--out", tmp_path / "whole", "--workers", "1")
    # The moments are shares of what this machine needs for the whole, busy or not.
    seconds = time.monotonic() - start
    while kills < NUM_KILLS:
        workers = moments.choice(["1", "2"])
        command = [
            sys.executable,
            "-m",
            "data_prep",
            "build",
            *map(str, small),
            "--out",
            str(out),
            "--workers",
            workers,
        ]
        with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=-3, stderr=-3) as process:
            time.sleep(seconds * moments.uniform(0.1, 0.95))
            ended = process.poll()
            process.kill()
        if ended is not None:
            assert ended == 0 and content(out) == reference
            shutil.rmtree(out)
            continue
        kills += 1
        shards = list(out.glob("shard-*.tar"))
        seen.add(len(shards))
        assert all(path.read_bytes() == reference[path.name] for path in shards), "a half-written shard under its name"
    assert len(seen) > 3, "the kills came at different stages"
    build(*small, "--out", out, "--workers", "2")
    assert content(out) == reference


def test_a_damaged_finished_shard_is_made_again(small: list, reference: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(*small, "--out", out)
    (out / "shard-000003.tar").chmod(0o644)
    (out / "shard-000003.tar").write_bytes(b"damaged")
    (out / "shard-000004.tar").unlink()
    done = build(*small, "--out", out)
    assert f"{len(reference) - 3} of {len(reference) - 1} shards are there already" in done.stderr
    assert content(out) == reference


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_ends_in_one_line_and_goes_on_later(
    small: list, reference: dict[str, bytes], tmp_path: Path, workers: str
) -> None:
    """The limit on a file's size stands for the full disk: writing fails at the same place in the same way."""
    out, files = tmp_path / "out", tmp_path / "files"
    files.mkdir()
    plain = []
    for path in small[:3]:
        data = Path(path).read_bytes()
        target = files / Path(path).name.removesuffix(".gz")
        target.write_bytes(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        plain.append(target)
    limit = 100_000  # A shard takes about 120,000 bytes, and the last one of a split less.
    command = [sys.executable, "-m", "data_prep", "build", *map(str, [*plain, *small[3:]]), "--out", str(out)]
    done = subprocess.run(
        [*command, "--workers", workers],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and f"{out}: File too large; free some space" in done.stderr
    assert all(path.read_bytes() == reference[path.name] for path in out.glob("shard-*.tar"))
    assert not list(out.rglob("*.tmp")) and not (out / "manifest.json").exists()
    build(*plain, *small[3:], "--out", out, "--workers", workers)
    shards = {name: data for name, data in content(out).items() if name.endswith(".tar")}
    assert shards == {name: data for name, data in reference.items() if name.endswith(".tar")}


def test_progress_is_shown_on_a_terminal_only(small: list, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "data_prep", "build", *map(str, small), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=-3, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        # A terminal whose other end is closed ends in an error on Linux.
        with contextlib.suppress(OSError):
            while data := os.read(ours, 1 << 16):
                seen += data
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"shards: +\d+%\|.*base/s", seen), seen[:500]
    assert build(*small, "--out", tmp_path / "quiet").stderr == ""


def test_torch_is_never_imported(tmp_path: Path) -> None:
    """A torch that breaks when it is imported, found by the workers too, does no harm."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')\n")
    (tmp_path / "g.fa").write_text(">a\n" + "ACGTTGCA" * 500 + "\n")
    path = {"PYTHONPATH": str(tmp_path)}
    for workers in ("1", "2"):
        build(tmp_path / "g.fa", "--out", tmp_path / workers, "--workers", workers, "--shard-tokens", "70000", **path)


def test_webdataset_has_its_torch_after_a_build(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">a\nACGTTGCAAC\n")
    code = (
        "import sys; from data_prep.cli import main\n"
        f"assert main(['build', '{tmp_path}/g.fa', '--out', '{tmp_path}/out', '--workers', '1']) == 0\n"
        "assert 'torch' not in sys.modules\n"
        "import torch, webdataset\n"
        "assert issubclass(webdataset.WebDataset, torch.utils.data.IterableDataset)\n"
    )
    done = run_cli("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak memory from")
def test_memory_does_not_grow_with_the_contig(tmp_path: Path) -> None:
    """One contig of 48 Mbase on one line takes no more than a few segments and one block of the scan."""
    sequence = bytes(np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 3_000_000)) * 16
    (tmp_path / "g.fa").write_bytes(b">a\n" + sequence + b"\n")
    (tmp_path / "small.fa").write_bytes(b">a\n" + sequence[:1000] + b"\n")
    code = (
        "from data_prep.cli import main\n"
        "for name in ('small', 'g'):\n"
        f"    path = '{tmp_path}/' + name\n"
        "    assert main(['build', path + '.fa', '--out', path, '--workers', '1']) == 0\n"
        "    print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    done = run_cli("-c", code)
    before, after = (int(line) for line in done.stdout.splitlines() if line.isdigit())
    assert after - before < 20_000, "kilobytes"


@pytest.mark.parametrize("command", ["", "build", "verify", "inspect", "stats", "train-bpe", "simulate"])
def test_help_is_quick_and_ends_with_an_example(command: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_cli("-m", "data_prep", *command.split(), "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "example:\n  python -m data_prep" in done.stdout
    # Processor time, which a busy machine does not lengthen.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "good.fa").write_text(">a\n" + "ACGTTGCA" * 50 + "\n>b\n" + "ACGGTA" * 50 + "\n")
    return tmp_path / "good.fa"


def write_files(folder: Path) -> None:
    (folder / "empty.fa").write_bytes(b"")
    (folder / "text.fa").write_text("chromosome\tlength\n")
    (folder / "binary.fa").write_bytes(bytes(range(256)) * 10)
    (folder / "later.fa").write_bytes(b">a\nACGTACGT\n\x00\x01\n")
    (folder / "protein.fa").write_text(">p\nMVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHF\n")
    (folder / "cut.fa.gz").write_bytes(gzip.compress(b">a\n" + os.urandom(5000).hex().encode())[:3000])
    (folder / "gaps.fa").write_text(">a\nNNNNNNNNNN\n")
    (folder / "list.txt").write_text("good.fa\nmissing.fa\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/absent.fa"], "absent.fa: no such file"),
        (["{}"], "is a folder"),
        (["{}/empty.fa"], "empty.fa: is empty"),
        (["{}/text.fa"], "text.fa, line 1: not FASTA: '>name' expected, but it starts with 'chromosome"),
        (["{}/binary.fa"], "binary.fa, line 1: not FASTA"),
        (["{}/later.fa"], r"later.fa, line 3: '\x00' is no letter"),
        (["{}/protein.fa"], "protein.fa: more than half of its letters"),
        (["{}/cut.fa.gz"], "cut.fa.gz: the gzip data are damaged or end too early"),
        (["{}/gaps.fa"], "no segment is left"),
        (["--list", "{}/list.txt"], "missing.fa: no such file"),
        ([], "no FASTA file; name at least one"),
        (["{}/good.fa", "--k", "9"], "--k 9: k must be between 3 and 8"),
        (["{}/good.fa", "--k", "six"], "argument --k: invalid int value: 'six'"),
        (["{}/good.fa", "--workers", "0"], "--workers 0: must be at least 1"),
        (["{}/good.fa", "--unk-bases", "3"], "--unk-bases: needs --ambiguous unk"),
        (["{}/good.fa", "--val-contigs", "aa"], "--val-contigs aa: no contig has this name; did you mean 'a'?"),
        (
            ["{}/good.fa", "--val-fraction", "0.4", "--test-fraction", "0.4"],
            "only 2 blocks of --block-bases 100000 hold sequence",
        ),
        (["{}/good.fa", "--tokenizer", "bpe.model"], "bpe.model: no such file"),
        (["{}/good.fa", "--tokenizer", "{}/text.fa"], "text.fa: not a SentencePiece model"),
        (["{}/good.fa", "--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2_and_leaves_nothing(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    write_files(tmp_path)
    workers = [] if "--workers" in words else ["--workers", "1"]
    try:
        code = main(["build", *(word.format(tmp_path) for word in words), "--out", str(tmp_path / "out"), *workers])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("dnabert-prep: error: ") and err.count("\n") == 1 and said in err, err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_another_build_is_refused_with_the_differences(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["build", str(good), *out]) == 0
    before = content(tmp_path / "out")
    assert main(["build", str(good), "--k", "5", "--seed", "1", *out]) == 2
    err = capsys.readouterr().err
    assert "--k 6 there, 5 here" in err and "--seed 0 there, 1 here" in err and err.count("\n") == 1
    good.write_text(good.read_text() + "ACGT\n")
    assert main(["build", str(good), *out]) == 2
    assert "good.fa (genome good) has changed" in capsys.readouterr().err
    assert content(tmp_path / "out") == before


def test_an_unfinished_build_of_something_else_is_refused_too(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "out" / ".build"
    assert main(["build", str(good), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    manifest = load_manifest(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    assert main(["build", str(good), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "holds shard-000000.tar of an unknown build" in capsys.readouterr().err
    scratch.mkdir()
    noted = {"options": {**manifest.options, "k": 4}, "sources": [asdict(source) for source in manifest.sources]}
    (scratch / "plan.json").write_text(json.dumps(noted))
    assert main(["build", str(good), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "--k 4 there, 6 here" in capsys.readouterr().err


def test_an_out_folder_that_is_a_file_is_refused(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = good.read_bytes()
    assert main(["build", str(good), "--out", str(good), "--workers", "1"]) == 2
    assert "good.fa: is no folder" in capsys.readouterr().err and good.read_bytes() == before


def test_two_builds_do_not_meet_in_one_folder(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out" / ".build").mkdir(parents=True)
    with open(tmp_path / "out" / ".build" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["build", str(good), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "another build is at work there" in capsys.readouterr().err
    assert main(["build", str(good), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0


@pytest.mark.parametrize("threads", [0, 1], ids=["forked", "spawned"])
def test_workers_end_with_their_parent(tmp_path: Path, threads: int) -> None:
    """A parent killed by SIGKILL can't tell its workers to stop; they see it themselves."""
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


@pytest.mark.parametrize("pause_seconds", [0, 0.5], ids=["after all are handed out", "while items are handed out"])
def test_a_worker_that_dies_ends_the_build_in_one_line(tmp_path: Path, pause_seconds: float) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, time\nfrom data_prep.parallel import open_executor, run_all\n"
        "from dnabert_rm.errors import run_command\n"
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
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
