"""Small prepared folders and other helpers that several test files need."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import webdataset

from dnabert_rm import kmer
from dnabert_rm.shards import (
    MANIFEST_NAME,
    ContigInfo,
    Manifest,
    ShardInfo,
    SourceInfo,
    TokenizerInfo,
    segment_keys,
    sha256_of_file,
)

ROOT = Path(__file__).resolve().parent.parent


def random_bases(rng: np.random.Generator, length: int) -> str:
    """A random sequence of A, C, G, T."""
    return "".join(rng.choice(list("ACGT"), length))


def write_prepared(
    folder: Path, shards: Sequence[Sequence[str]], *, k: int = 6, splits: Mapping[int, str] | None = None
) -> Manifest:
    """A prepared folder, written apart from `data_prep`: one contig a segment, the sequences as given."""
    folder.mkdir(parents=True)
    keys, contigs, infos = segment_keys(), [], []
    for number, sequences in enumerate(shards):
        split = (splits or {}).get(number, "train")
        path = folder / f"shard-{number:06d}.tar"
        lengths = []
        with webdataset.TarWriter(str(path), mtime=0, user="root", group="root") as tar:
            for sequence in sequences:
                ids = kmer.encode(sequence, k)
                name = f"contig{len(contigs)}"
                record = {"genome": "g", "contig": name, "start": 0, "end": len(sequence), "split": split}
                tar.write({"__key__": next(keys), "ids.npy": ids, "json": record})
                contigs.append(ContigInfo("g", name, len(sequence), len(ids), {}))
                lengths.append(len(ids))
        infos.append(ShardInfo(path.name, split, path.stat().st_size, sha256_of_file(path), lengths))
    manifest = Manifest(
        tokenizer=TokenizerInfo("kmer", kmer.vocab_size(k), k),
        sources=[SourceInfo("g", "g.fa", 0, "0" * 64)],
        contigs=contigs,
        shards=infos,
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return manifest


def clean_environment() -> dict[str, str]:
    """The environment without what a launcher set, one thread a process."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    folder = str(Path(sys.executable).parent)
    return {**kept, "OMP_NUM_THREADS": "1", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def run_cli(*words: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a Python module or script of the project, e.g. `run_cli("-m", "data_prep", "inspect", folder)`."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def read_metrics(run: Path) -> list[dict]:
    """Rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def free_port() -> int:
    """A TCP port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(num_ranks: int, *words: str | Path, timeout: float = 300) -> str:
    """Run `launch_scripts/pretrain.sh` on gloo ranks of this machine; returns what all of them printed to stderr."""
    shared = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1"}
    port, processes = free_port(), []
    for rank in range(num_ranks):
        variables = {**shared, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        environment = {**clean_environment(), **{name: str(value) for name, value in variables.items()}}
        command = [sys.executable, "launch_scripts/pretrain.sh", *map(str, words)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=timeout)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(printed)
    return "\n".join(printed)
