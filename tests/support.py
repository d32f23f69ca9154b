"""Small prepared folders and other helpers that several test files need."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import multiprocessing.process
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from dnabert_rm.data.manifest import (
    MANIFEST_NAME,
    ContigInfo,
    Manifest,
    ShardInfo,
    SourceInfo,
    TokenizerInfo,
    segment_keys,
)
from dnabert_rm.genome import kmer
from dnabert_rm.utils.files import sha256_of_file

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


def launcher_variables() -> set[str]:
    """Names in the environment that a launcher of ranks may have set."""
    plain = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    starts = ("OMPI_", "PMIX_", "PMI_", "MV2_", "SLURM_", "MPI_LOCAL")
    return plain | {name for name in os.environ if name.startswith(starts)}


def clean_environment() -> dict[str, str]:
    """The environment without what a launcher set, one thread a process."""
    launcher = launcher_variables()
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


# A server that has imported the slow libraries once forks each rank from itself, in a moment instead of ten seconds.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["dnabert_rm.train.trainer", "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.runtime.engine",
     "torch.utils.tensorboard", "transformers.models.bert.modeling_bert",
     "transformers.models.modernbert.modeling_modernbert"]
)  # fmt: skip


def start_ranks(
    num_ranks: int,
    words: Sequence[str | Path],
    log: Path,
    *,
    own_words: Mapping[int, Sequence[str | Path]] | None = None,
    own_variables: Mapping[int, Mapping[str, str]] | None = None,
    **variables: str,
) -> list[multiprocessing.process.BaseProcess]:
    """Start `launch_scripts/pretrain.sh` on gloo ranks of this machine; rank r prints to `log/r.txt`.

    Each rank is a process of its own, forked with the libraries imported. `variables` go into their environment.
    Rank r has the words `own_words[r]` after the common ones, and `own_variables[r]` over the common ones.
    """
    shared = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": free_port(), **variables}  # fmt: skip
    ranks = []
    for rank in range(num_ranks):
        own = (own_variables or {}).get(rank, {})
        environment = {"RANK": rank, "LOCAL_RANK": rank, **shared, **own}
        ranks.append(start_rank(environment, [*words, *(own_words or {}).get(rank, [])], log / f"{rank}.txt"))
    return ranks


def start_rank(
    environment: Mapping[str, Any], words: Sequence[str | Path], log: Path, node: str = ""
) -> multiprocessing.process.BaseProcess:
    """Start one rank with `environment` over this process's; it prints to `log`.

    `node` is the name of a network namespace to start it in, which is also its host name.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = {name: str(value) for name, value in environment.items()}
    process = _FORKS.Process(target=run_rank, args=(variables, [*map(str, words)], str(log), node))
    process.start()
    return process


def run_rank(environment: dict[str, str], words: list[str], log: str, node: str) -> None:
    """Runs in a forked process: one rank of a pretraining run."""
    from dnabert_rm.cli.main import run_one

    if node:
        move_to_node(node)
    # A rank's loader processes start as they would under a launcher, not from the server above.
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep) if "PYTHONPATH" in environment else []
    with open(log, "w", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        code = run_one("pretrain", "pretrain.sh", words)
        sys.stderr.flush()
    os._exit(code)  # as a killed or ended rank does; multiprocessing would wait for what the rank left running


def move_to_node(name: str) -> None:
    """Put this process into a network namespace that `ip netns add` made, with a host name of its own."""
    new_net, new_uts = 0x40000000, 0x04000000  # CLONE_NEWNET, CLONE_NEWUTS; os.setns comes with Python 3.12
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as namespace:
        if libc.setns(namespace.fileno(), new_net) or libc.unshare(new_uts):
            raise OSError(ctypes.get_errno(), f"can't enter {name}")
    socket.sethostname(name)


def wait_for(ranks: Sequence[multiprocessing.process.BaseProcess], timeout: float = 300) -> list[int | None]:
    """Exit codes of ranks, once all of them have ended (negative: killed by that signal)."""
    deadline = time.monotonic() + timeout
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        if process.is_alive():
            process.kill()
    return codes


def on_ranks(num_ranks: int, function: Callable[..., Any], *arguments: Any, timeout: float = 300) -> list[Any]:
    """What a function of a module returns on each of so many gloo ranks; it gets `Ranks` and the arguments."""
    results, port = _FORKS.SimpleQueue(), free_port()
    processes = [
        _FORKS.Process(target=_function_rank, args=(num_ranks, rank, port, results, function, arguments))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    assert wait_for(processes, timeout) == [0] * num_ranks
    found = dict(results.get() for _ in processes)
    return [found[rank] for rank in range(num_ranks)]


def _function_rank(num_ranks: int, rank: int, port: int, results: Any, function: Any, arguments: Any) -> None:
    from dnabert_rm.distributed.process_group import process_group

    variables = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}  # fmt: skip
    os.environ.update({name: str(value) for name, value in variables.items()})
    with process_group(1) as ranks:
        results.put((rank, function(ranks, *arguments)))


def run_ranks(num_ranks: int, *words: str | Path, timeout: float = 300, codes: Sequence[int] | None = None) -> str:
    """Run `launch_scripts/pretrain.sh` on gloo ranks of this machine; returns what all of them printed.

    The exit codes must be `codes`, by default all 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = wait_for(start_ranks(num_ranks, words, Path(folder)), timeout)
        printed = "\n".join((Path(folder) / f"{rank}.txt").read_text() for rank in range(num_ranks))
    assert found == list(codes or [0] * num_ranks), printed
    return printed


def vouch_for(folder: Path) -> None:
    """Seal a checkpoint anew, as somebody would who wants a spoilt one to be loaded."""
    from dnabert_rm.checkpoint.checksums import (
        CheckpointManifest,
        hash_own_files,
        read_checkpoint_manifest,
        write_checkpoint_manifest,
    )

    write_checkpoint_manifest(
        folder, CheckpointManifest(read_checkpoint_manifest(folder).layout, hash_own_files(folder, 0, 1))
    )
