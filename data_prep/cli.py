"""The commands of `python -m data_prep` (also `dnabert-prep`); each imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from data_prep.sharding.options import BuildOptions, SegmentOptions
from dnabert_rm.config.command_line import Command, choose_command, overview
from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.utils.errors import ConfigError, run_command
from dnabert_rm.utils.files import check_readable_file, sha256_of_file

PROGRAM = "python -m data_prep"
DESCRIPTION = "Whole genomes to shards of token ids for pretraining."
DEFAULT_K = 6
DEFAULT_UNK_BASES = 10


@dataclass(frozen=True, kw_only=True)
class BuildSettings(SegmentOptions):
    """Flags of `build`: the inputs and the output beside what changes the shards' bytes."""

    GROUPS: ClassVar = {
        "segment_tokens": "segments (units are tokens; with BPE, bases)",
        "include": "contigs and splits (NAME, GENOME:NAME, or patterns with * ? [ ])",
        "fasta": "input and output",
    }

    fasta: tuple[str, ...] = setting((), positional=True, metavar="GENOME.fa")
    """FASTA files, plain, gzip or bgzip; NAME=FILE gives a file's genome a name."""
    list: str | None = setting(None, metavar="FILE")
    """A file with one FASTA, or NAME=FASTA, per line."""
    out: Path = setting(metavar="DIR")
    """Folder to fill."""
    tokenizer: str = setting("kmer", metavar="kmer|FILE.model")
    """K-mers, or a BPE model."""
    k: int | None = setting(None, metavar="K")
    """Bases per k-mer, 3 to 8; by default 6."""
    ambiguous: Literal["split", "unk"] = "split"
    """At letters other than A, C, G, T: split the segment, or keep short runs as [UNK]."""
    unk_bases: int | None = setting(None, metavar="N")
    """Longest run that --ambiguous unk keeps; by default 10."""
    workers: int | None = setting(None, metavar="N", minimum=1)
    """Processes; by default one per core. Under mpirun the ranks."""

    @property
    def bpe_model(self) -> str | None:
        """Path of the BPE model; None for k-mers."""
        return None if self.tokenizer == "kmer" else self.tokenizer

    def build_options(self) -> BuildOptions:
        """The options that change the shards' bytes; `ConfigError` for a contradiction."""
        model = self.bpe_model
        if self.unk_bases is not None and self.ambiguous != "unk":
            raise ConfigError("--unk-bases: needs --ambiguous unk")
        if self.k is not None and model is not None:
            raise ConfigError(f"--k {self.k}: goes with k-mers, not with a BPE model; leave one out")
        if model is not None:
            check_readable_file(model, "kmer or a SentencePiece model")
        k = DEFAULT_K if self.k is None else self.k
        unk_bases = DEFAULT_UNK_BASES if self.unk_bases is None else self.unk_bases
        shared: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(SegmentOptions)}
        return BuildOptions(
            k=None if model is not None else k,
            unk_bases=unk_bases if self.ambiguous == "unk" else 0,
            bpe_sha256=None if model is None else sha256_of_file(model),
            **shared,
        )


def build(settings: BuildSettings) -> None:
    """Make a folder of shards, or continue one, and print what it holds."""
    from data_prep.inspect import as_text
    from data_prep.parallel import open_executor
    from data_prep.sharding.build_shards import Job
    from data_prep.sharding.build_shards import build as build_shards
    from data_prep.sharding.sources import find_sources

    with open_executor(num_workers(settings.workers)) as executor:
        # Under MPI only one rank gets an executor, so that a mistake is reported once.
        if executor is not None:
            sources = find_sources(settings.fasta, settings.list)
            job = Job(sources, settings.build_options(), settings.out, settings.bpe_model)
            print(as_text(str(settings.out), build_shards(job, executor)))


@dataclass(frozen=True, kw_only=True)
class VerifySettings(Settings):
    """Flags of `verify`."""

    folder: Path = setting(positional=True, metavar="DIR")
    """Folder of a finished build."""
    leakage: int | None = setting(None, metavar="BASES", minimum=1)
    """Also report exact sequences of this length that splits share."""
    workers: int | None = setting(None, metavar="N", minimum=1)
    """Processes; by default one per core. Under mpirun the ranks."""


def verify(settings: VerifySettings) -> int:
    """Check a folder; returns 1 on any fault. With --leakage also report what splits share."""
    from data_prep import leakage
    from data_prep import verify as checks
    from data_prep.parallel import open_executor

    code = 0
    with open_executor(num_workers(settings.workers)) as executor:
        if executor is not None:
            code = checks.run(settings.folder, executor)
            if code == 0 and settings.leakage is not None:
                leakage.run(settings.folder, settings.leakage, executor)
    return code


@dataclass(frozen=True, kw_only=True)
class InspectSettings(Settings):
    """Flags of `inspect`."""

    folder: Path = setting(positional=True, metavar="DIR")
    """Folder of a finished build."""
    json: bool = False
    """Print one JSON object."""
    samples: int = setting(3, metavar="N")
    """Samples to show as bases."""
    seed: int = setting(0, metavar="N")
    """Seed of the choice of samples."""


def inspect(settings: InspectSettings) -> int:
    """Print what a folder holds, with samples."""
    from data_prep import inspect as view

    return view.run(settings.folder, settings.json, settings.samples, settings.seed)


@dataclass(frozen=True, kw_only=True)
class StatsSettings(Settings):
    """Flags of `stats`."""

    folder: Path = setting(positional=True, metavar="DIR")
    """Folder of a finished build."""
    json: bool = False
    """Print one JSON object."""
    plot: str | None = setting(None, metavar="FILE.png")
    """Write the histogram of segment lengths as a picture."""
    workers: int | None = setting(None, metavar="N", minimum=1)
    """Processes; by default one per core. Under mpirun the ranks."""


def stats(settings: StatsSettings) -> None:
    """Print counts, GC and the histogram of segment lengths."""
    from data_prep import stats as counts
    from data_prep.parallel import open_executor

    with open_executor(num_workers(settings.workers)) as executor:
        if executor is not None:
            counts.run(settings.folder, settings.json, settings.plot, executor)


@dataclass(frozen=True, kw_only=True)
class TrainBpeSettings(Settings):
    """Flags of `train-bpe`."""

    fasta: tuple[str, ...] = setting((), positional=True, metavar="GENOME.fa")
    """FASTA files, plain, gzip or bgzip; NAME=FILE gives a file's genome a name."""
    list: str | None = setting(None, metavar="FILE")
    """A file with one FASTA, or NAME=FASTA, per line."""
    out: Path = setting(metavar="FILE.model")
    """The model to write."""
    vocab_size: int = setting(4096, metavar="N")
    """Number of ids, special tokens included."""
    sample_bases: int = setting(10_000_000, metavar="N")
    """Bases to train on, about 50 bytes of memory each."""
    seed: int = setting(0, metavar="N")
    """Seed of the sample."""
    rna: bool = False
    """Read U as T."""
    workers: int | None = setting(None, metavar="N", minimum=1)
    """Processes; by default one per core. Under mpirun the ranks."""


def train_bpe(settings: TrainBpeSettings) -> None:
    """Train a BPE model on a sample of the input."""
    from data_prep.bpe import train_from_files
    from data_prep.parallel import open_executor
    from data_prep.sharding.sources import find_sources

    with open_executor(num_workers(settings.workers)) as executor:
        if executor is not None:
            train_from_files(
                find_sources(settings.fasta, settings.list),
                settings.out,
                settings.vocab_size,
                settings.sample_bases,
                settings.seed,
                settings.rna,
                executor,
            )


@dataclass(frozen=True, kw_only=True)
class SimulateSettings(Settings):
    """Flags of `simulate`."""

    out: Path = setting(metavar="DIR")
    """Folder to fill."""
    bases: int = setting(4_000_000, metavar="N")
    """Size of the genome."""
    rows: int = setting(1500, metavar="N")
    """Rows of train.csv."""
    seed: int = setting(0, metavar="N")
    """Seed of everything random."""


def simulate(settings: SimulateSettings) -> int:
    """Write a simulated genome and labelled sequences."""
    from data_prep import simulate as simulation

    return simulation.run(settings.out, settings.bases, settings.rows, settings.seed)


def num_workers(workers: int | None) -> int:
    """The number given, or as many as cores that this process may use."""
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers


def _command(name: str, text: str, settings: type, run: Any, example: str, description: str = "") -> Command:
    return Command(name, text, f"{PROGRAM} {name} {example}", settings, run, description)


COMMANDS = {
    command.name: command
    for command in (
        _command(
            "build",
            "FASTA files to shards and a manifest",
            BuildSettings,
            build,
            "yeast.fa.gz --out yeast --val-fraction 0.05\n"
            "mpirun -n 64 python -m data_prep build --list genomes.txt --out shards --test-contigs 'human:chr8'",
            "FASTA files to shards and a manifest. The shards' bytes depend only on the files and options, not on the\n"
            "number of workers or ranks. An unfinished build in DIR continues where it stopped.",
        ),
        _command(
            "verify",
            "Check every shard against the manifest",
            VerifySettings,
            verify,
            "yeast --leakage 100",
            "Check every shard against the manifest: checksums, counts, ids in range, every base accounted for,\n"
            "splits disjoint. Ends with 1 and the shard's name on any fault.",
        ),
        _command("inspect", "What a folder of shards holds", InspectSettings, inspect, "yeast --json"),
        _command("stats", "Bases by reason, GC, segment lengths", StatsSettings, stats, "yeast --plot lengths.png"),
        _command(
            "train-bpe",
            "A SentencePiece BPE model of DNA",
            TrainBpeSettings,
            train_bpe,
            "yeast.fa.gz --vocab-size 4096 --out yeast.model",
            "A SentencePiece BPE model of DNA, trained on sequences sampled from all contigs.",
        ),
        _command(
            "simulate",
            "A simulated genome and labelled sequences",
            SimulateSettings,
            simulate,
            "--out demo --bases 4000000",
            "A simulated genome and labelled sequences: genome.fa, train.csv, dev.csv and test.csv.",
        ),
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (2 for a user's mistake, after one line on standard error)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        example = f"{PROGRAM} build yeast.fa.gz --out yeast --val-fraction 0.05"
        print(overview(PROGRAM, DESCRIPTION, COMMANDS.values(), example))
        return 0 if words else 2
    return run_command(PROGRAM, lambda: _run(words))


def _run(words: Sequence[str]) -> int | None:
    name = choose_command(PROGRAM, COMMANDS, words)
    return COMMANDS[name].main(f"{PROGRAM} {name}", words[1:])
