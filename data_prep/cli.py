"""Commands of `python -m data_prep` (also `dnabert-prep`). Each command imports its modules only when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from data_prep.labels.options import LabelsSettings
from data_prep.sharding.options import BuildOptions, RegionFile, SegmentOptions, is_bed_name
from data_prep.upload_settings import UploadSettings, upload
from dnabert_rm.config.command_line import Command, choose_command, overview
from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.utils.errors import ConfigError, run_command
from dnabert_rm.utils.files import check_not_input, check_readable_file, check_regular_file, sha256_of_file

PROGRAM = "python -m data_prep"
DESCRIPTION = "Convert whole genomes to shards of token ids for pretraining."
DEFAULT_K = 6
DEFAULT_UNK_BASES = 10


@dataclass(frozen=True, kw_only=True)
class BuildSettings(SegmentOptions):
    """Flags of `build`: inputs, output folder, and the options that change the shards' bytes."""

    GROUPS: ClassVar = {
        "segment_tokens": "segments (units are tokens; with BPE, bases)",
        "include": "contigs and splits (NAME, GENOME:NAME, or patterns with * ? [ ])",
        "fasta": "input and output",
    }

    regions: tuple[str, ...] = setting((), metavar="FILE.bed")
    """Use only the bases inside the intervals of these BED files."""
    fasta: tuple[str, ...] = setting((), positional=True, metavar="GENOME.fa")
    """FASTA files (plain, gzip or bgzip). NAME=FILE sets the genome's name."""
    list: str | None = setting(None, metavar="FILE")
    """Text file with one FASTA path per line, as PATH or NAME=PATH."""
    out: Path = setting(metavar="DIR")
    """Output folder."""
    tokenizer: str = setting("kmer", metavar="kmer|FILE.model")
    """kmer, or the file of a BPE model."""
    k: int | None = setting(None, metavar="K")
    """Bases per k-mer, 3 to 8 (default: 6)."""
    ambiguous: Literal["split", "unk"] = "split"
    """Letters other than A, C, G, T: split the segment there, or keep short runs of them as [UNK]."""
    unk_bases: int | None = setting(None, metavar="N")
    """Longest run of ambiguous letters that --ambiguous unk keeps, in bases (default: 10)."""
    workers: int | None = setting(None, metavar="N", minimum=1)
    """Number of worker processes (default: one per core). Under mpirun, the MPI ranks are the workers."""

    @property
    def bpe_model(self) -> str | None:
        """Path of the BPE model, or None for k-mers."""
        return None if self.tokenizer == "kmer" else self.tokenizer

    @property
    def exclude_regions(self) -> tuple[str, ...]:
        """BED files among the values of --exclude: existing files that have the suffix of a BED file."""
        return tuple(word for word in self.exclude if is_bed_name(word) and os.path.isfile(word))

    def build_options(self) -> BuildOptions:
        """Return the options that change the shards' bytes. Raises `ConfigError` if flags conflict."""
        model = self.bpe_model
        if self.unk_bases is not None and self.ambiguous != "unk":
            raise ConfigError("--unk-bases: requires --ambiguous unk; pass both or neither")
        if self.k is not None and model is not None:
            raise ConfigError(f"--k {self.k}: applies to k-mers, not to a BPE model; omit --k or --tokenizer")
        if model is not None:
            check_readable_file(model, "kmer or a SentencePiece model")
        k = DEFAULT_K if self.k is None else self.k
        unk_bases = DEFAULT_UNK_BASES if self.unk_bases is None else self.unk_bases
        shared: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(SegmentOptions)}
        shared["exclude"] = tuple(word for word in self.exclude if word not in self.exclude_regions)
        return BuildOptions(
            k=None if model is not None else k,
            unk_bases=unk_bases if self.ambiguous == "unk" else 0,
            bpe_sha256=None if model is None else sha256_of_file(model),
            regions=tuple(map(_region_file, self.regions)),
            exclude_regions=tuple(map(_region_file, self.exclude_regions)),
            **shared,
        )


def _region_file(path: str) -> RegionFile:
    check_readable_file(path, "a BED file")
    check_regular_file(path, "each BED file is read twice")
    return RegionFile(Path(path).name, sha256_of_file(path))


def build(settings: BuildSettings) -> None:
    """Build a folder of shards, or resume an unfinished build, and print a summary."""
    from data_prep.inspect import as_text
    from data_prep.parallel import open_executor
    from data_prep.sharding.build_shards import Job
    from data_prep.sharding.build_shards import build as build_shards
    from data_prep.sharding.sources import find_sources

    with open_executor(num_workers(settings.workers)) as executor:
        # Under MPI only one rank gets an executor, so that an error is reported once.
        if executor is not None:
            sources = find_sources(settings.fasta, settings.list)
            options = settings.build_options()
            regions = (settings.regions, settings.exclude_regions)
            job = Job(sources, options, settings.out, settings.bpe_model, *regions)
            print(as_text(str(settings.out), build_shards(job, executor)))


@dataclass(frozen=True, kw_only=True)
class VerifySettings(Settings):
    """Flags of `verify`."""

    folder: Path = setting(positional=True, metavar="DIR")
    """Folder of a finished build."""
    leakage: int | None = setting(None, metavar="BASES", minimum=1)
    """Also report the fraction of val and test sequences of this length that another split contains."""
    workers: int | None = setting(None, metavar="N", minimum=1)
    """Number of worker processes (default: one per core). Under mpirun, the MPI ranks are the workers."""


def verify(settings: VerifySettings) -> int:
    """Check a folder of shards. Return 1 if the folder has a fault, else 0.

    If the folder has no fault and `--leakage` is set, also print the fraction of val and test sequences that occur in
    another split.
    """
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
    """Number of random samples to show as bases."""
    seed: int = setting(0, metavar="N")
    """Seed for choosing samples."""
    bed: Path | None = setting(None, metavar="FILE")
    """Write the segments of the splits val and test to this BED file, with the split as name."""


def inspect(settings: InspectSettings) -> int:
    """Print a summary of a folder of shards, and the bases of a few random subsequences."""
    from data_prep import inspect as view

    return view.run(settings.folder, settings.json, settings.samples, settings.seed, settings.bed)


@dataclass(frozen=True, kw_only=True)
class StatsSettings(Settings):
    """Flags of `stats`."""

    folder: Path = setting(positional=True, metavar="DIR")
    """Folder of a finished build."""
    json: bool = False
    """Print one JSON object."""
    plot: str | None = setting(None, metavar="FILE.png")
    """Write the histogram of segment lengths to this image."""
    workers: int | None = setting(None, metavar="N", minimum=1)
    """Number of worker processes (default: one per core). Under mpirun, the MPI ranks are the workers."""


def stats(settings: StatsSettings) -> None:
    """Print base counts, GC content and the histogram of segment lengths of a folder of shards."""
    from data_prep import stats as counts
    from data_prep.parallel import open_executor

    with open_executor(num_workers(settings.workers)) as executor:
        if executor is not None:
            counts.run(settings.folder, settings.json, settings.plot, executor)


@dataclass(frozen=True, kw_only=True)
class TrainBpeSettings(Settings):
    """Flags of `train-bpe`."""

    fasta: tuple[str, ...] = setting((), positional=True, metavar="GENOME.fa")
    """FASTA files (plain, gzip or bgzip). NAME=FILE sets the genome's name."""
    list: str | None = setting(None, metavar="FILE")
    """Text file with one FASTA path per line, as PATH or NAME=PATH."""
    out: Path = setting(metavar="FILE.model")
    """Model file to write."""
    vocab_size: int = setting(4096, metavar="N")
    """Number of ids, special tokens included."""
    sample_bases: int = setting(10_000_000, metavar="N")
    """Number of bases to train on. Each base takes about 50 bytes of memory."""
    seed: int = setting(0, metavar="N")
    """Seed for choosing the sample."""
    rna: bool = False
    """Read U as T."""
    workers: int | None = setting(None, metavar="N", minimum=1)
    """Number of worker processes (default: one per core). Under mpirun, the MPI ranks are the workers."""


def train_bpe(settings: TrainBpeSettings) -> None:
    """Train a BPE model on a sample of the FASTA files."""
    from data_prep.bpe import train_from_files
    from data_prep.parallel import open_executor
    from data_prep.sharding.sources import find_sources

    with open_executor(num_workers(settings.workers)) as executor:
        if executor is not None:
            sources = find_sources(settings.fasta, settings.list)
            lists = [settings.list] if settings.list else []
            check_not_input(settings.out, [*lists, *(source.path for source in sources)], "--out")
            train_from_files(
                sources,
                settings.out,
                settings.vocab_size,
                settings.sample_bases,
                settings.seed,
                settings.rna,
                executor,
            )


@dataclass(frozen=True, kw_only=True)
class TablesSettings(Settings):
    """Flags of `tables`."""

    source: Path = setting(positional=True, metavar="FOLDER")
    """Folder with one data set or several."""
    out: Path = setting(metavar="DIR")
    """Output folder: a folder with train.csv, dev.csv and test.csv for each data set."""
    fasta: Path | None = setting(None, metavar="GENOME.fa")
    """Genome of interval files, plain or gzip."""
    overwrite: bool = False
    """Replace tables that are already in --out."""
    dev_fraction: float = setting(0.1, metavar="F", above=0, below=1)
    """Share of the training rows for dev.csv, if the data set has no such split."""
    seed: int = setting(0, metavar="N")
    """Seed for choosing them."""


def tables(settings: TablesSettings) -> None:
    """Convert benchmarks of other projects to tables for fine-tuning, and print a line for each data set."""
    from data_prep.tables import convert

    for line in convert(
        settings.source,
        settings.out,
        fasta=settings.fasta,
        overwrite=settings.overwrite,
        dev_fraction=settings.dev_fraction,
        seed=settings.seed,
    ):
        print(line)


def labels(settings: LabelsSettings) -> None:
    """Write labelled sequences for fine-tuning, and print a summary."""
    from data_prep.labels.make_labels import make_labels
    from data_prep.labels.report import as_text

    print(as_text(make_labels(settings), settings.out))


@dataclass(frozen=True, kw_only=True)
class SimulateSettings(Settings):
    """Flags of `simulate`."""

    out: Path = setting(metavar="DIR")
    """Output folder."""
    bases: int = setting(4_000_000, metavar="N")
    """Size of the genome in bases."""
    rows: int = setting(1500, metavar="N")
    """Number of rows in train.csv."""
    seed: int = setting(0, metavar="N")
    """Random seed."""


def simulate(settings: SimulateSettings) -> int:
    """Write a simulated genome, and labelled sequences for fine-tuning."""
    from data_prep import simulate as simulation

    return simulation.run(settings.out, settings.bases, settings.rows, settings.seed)


def num_workers(workers: int | None) -> int:
    """Return `workers`. If it is None, return the number of CPU cores available to this process."""
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
            "Convert FASTA files to shards and a manifest",
            BuildSettings,
            build,
            "yeast.fa.gz --out yeast --val-fraction 0.05\n"
            "mpirun -n 64 python -m data_prep build --list genomes.txt --out shards --test-contigs 'human:chr8'",
            "Convert FASTA files to shards and a manifest. The shards' bytes depend only on the files and options,\n"
            "not on the number of workers or ranks. An unfinished build in DIR continues where it stopped.",
        ),
        _command(
            "verify",
            "Check every shard against the manifest",
            VerifySettings,
            verify,
            "yeast --leakage 100",
            "Check every shard against the manifest: checksums, counts, range of ids, coverage of every base,\n"
            "and disjoint splits. Prints every fault with its shard or contig, and exits with 1 if there is a fault.",
        ),
        _command(
            "upload",
            "Upload a folder of shards to object storage",
            UploadSettings,
            upload,
            "yeast s3://bucket/yeast",
            "Upload a folder of shards, the manifest last, and compare every file there with the manifest.\n"
            "After an interruption, the same command uploads only what is missing.",
        ),
        _command("inspect", "Summarize a folder of shards", InspectSettings, inspect, "yeast --json"),
        _command(
            "stats",
            "Report base counts, GC content and segment lengths",
            StatsSettings,
            stats,
            "yeast --plot lengths.png",
        ),
        _command(
            "train-bpe",
            "Train a SentencePiece BPE model of DNA",
            TrainBpeSettings,
            train_bpe,
            "yeast.fa.gz --vocab-size 4096 --out yeast.model",
            "Train a SentencePiece BPE model of DNA on sequences sampled from all contigs.",
        ),
        _command(
            "labels",
            "Make labelled sequences from intervals and a genome",
            LabelsSettings,
            labels,
            "peaks.narrowPeak --fasta genome.fa.gz --window 200 --anchor summit --out peaks\n"
            "python -m data_prep labels genes.gff3 --feature gene --anchor start --window 300 --upstream 249 "
            "--fasta genome.fa.gz --test-contigs chrXIV --out promoters",
            "Make train.csv, dev.csv and test.csv for fine-tuning: windows around intervals, with labels, matched\n"
            "negatives and splits that share no base. Counts everything that is dropped in labels.json.",
        ),
        _command(
            "tables",
            "Convert benchmarks of other projects to tables",
            TablesSettings,
            tables,
            "genomic_benchmarks/ --out benchmarks --fasta hg38.fa.gz",
            "Convert data sets of Genomic Benchmarks (text or interval files by class), of the Nucleotide Transformer\n"
            "(FASTA with labels in the headers) and Parquet copies to train.csv, dev.csv and test.csv.",
        ),
        _command(
            "simulate",
            "Simulate a genome and labelled sequences",
            SimulateSettings,
            simulate,
            "--out demo --bases 4000000",
            "Simulate a genome and labelled sequences: genome.fa, train.csv, dev.csv and test.csv.",
        ),
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. After a user error, print one line to standard error and return 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        example = f"{PROGRAM} build yeast.fa.gz --out yeast --val-fraction 0.05"
        print(overview(PROGRAM, DESCRIPTION, COMMANDS.values(), example))
        return 0
    return run_command(PROGRAM, lambda: _run(words))


def _run(words: Sequence[str]) -> int | None:
    name = choose_command(PROGRAM, COMMANDS, words)
    return COMMANDS[name].main(f"{PROGRAM} {name}", words[1:])
