"""What each command does with its flags; imports stay inside, so that `--help` is quick."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import check_readable_file

if TYPE_CHECKING:
    from data_prep.build.options import BuildOptions

_PLAIN_OPTIONS = (
    "segment_tokens", "min_tokens", "shard_tokens", "rna", "record_soft_mask", "val_fraction", "test_fraction",
    "block_bases", "seed", "strand",
)  # fmt: skip
_LIST_OPTIONS = ("include", "exclude", "val_contigs", "test_contigs")


def build(args: Namespace) -> int:
    """`build`: make, or go on with, a folder of shards, and print what it holds."""
    from data_prep.build.build_shards import Job
    from data_prep.build.build_shards import build as build_shards
    from data_prep.build.sources import find_sources
    from data_prep.inspect import as_text
    from data_prep.parallel import open_executor

    model = None if args.tokenizer == "kmer" else args.tokenizer
    with open_executor(_num_workers(args)) as executor:
        # Under MPI one rank alone reads the flags, so that a mistake is told once.
        if executor is not None:
            job = Job(find_sources(args.fasta, args.list), _build_options(args, model), Path(args.out), model)
            print(as_text(args.out, build_shards(job, executor)))
    return 0


def _build_options(args: Namespace, model: str | None) -> BuildOptions:
    from data_prep.build.options import BuildOptions
    from dnabert_rm.utils.files import sha256_of_file

    if args.unk_bases is not None and args.ambiguous != "unk":
        raise ConfigError("--unk-bases: needs --ambiguous unk")
    if args.k is not None and model is not None:
        raise ConfigError(f"--k {args.k}: goes with k-mers, not with a BPE model; leave one out")
    if model is not None:
        check_readable_file(model, "kmer or a SentencePiece model")
    unk_bases = 10 if args.unk_bases is None else args.unk_bases
    plain: dict[str, Any] = {name: getattr(args, name) for name in _PLAIN_OPTIONS}
    lists: dict[str, Any] = {name: tuple(getattr(args, name)) for name in _LIST_OPTIONS}
    return BuildOptions(
        k=None if model is not None else 6 if args.k is None else args.k,
        unk_bases=unk_bases if args.ambiguous == "unk" else 0,
        bpe_sha256=None if model is None else sha256_of_file(model),
        **plain,
        **lists,
    )


def verify(args: Namespace) -> int:
    """`verify`: 1 on any fault; with --leakage also what splits share."""
    from data_prep import leakage
    from data_prep import verify as checks
    from data_prep.parallel import open_executor

    if args.leakage is not None and args.leakage < 1:
        raise ConfigError(f"--leakage {args.leakage}: must be at least 1 base")
    code = 0
    with open_executor(_num_workers(args)) as executor:
        if executor is not None:
            code = checks.run(Path(args.folder), executor)
            if code == 0 and args.leakage is not None:
                leakage.run(Path(args.folder), args.leakage, executor)
    return code


def inspect(args: Namespace) -> int:
    """`inspect`: what a folder holds, with samples."""
    from data_prep import inspect as view

    return view.run(Path(args.folder), args.json, args.samples, args.seed)


def stats(args: Namespace) -> int:
    """`stats`: counts, GC and the histogram of segment lengths."""
    from data_prep import stats as counts
    from data_prep.parallel import open_executor

    with open_executor(_num_workers(args)) as executor:
        if executor is not None:
            counts.run(Path(args.folder), args.json, args.plot, executor)
    return 0


def train_bpe(args: Namespace) -> int:
    """`train-bpe`: a BPE model from a sample of the input."""
    from data_prep.bpe import train_from_files
    from data_prep.build.sources import find_sources
    from data_prep.parallel import open_executor

    with open_executor(_num_workers(args)) as executor:
        if executor is not None:
            sources = find_sources(args.fasta, args.list)
            train_from_files(sources, Path(args.out), args.vocab_size, args.sample_bases, args.seed, args.rna, executor)
    return 0


def simulate(args: Namespace) -> int:
    """`simulate`: a genome and labelled sequences."""
    from data_prep import simulate as simulation

    return simulation.run(Path(args.out), args.bases, args.rows, args.seed)


def _num_workers(args: Namespace) -> int:
    """--workers, or as many as cores that this process may use."""
    if args.workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: must be at least 1")
    return int(args.workers)
