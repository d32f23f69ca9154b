"""The commands of `python -m data_prep` (also `dnabert-prep`); each imports what it needs when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from data_prep import commands
from dnabert_rm.config.command_line import OneLineParser
from dnabert_rm.utils.errors import run_command

PROGRAM = "python -m data_prep"
_FASTA = "FASTA files, plain, gzip or bgzip; NAME=FILE gives a file's genome a name"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = make_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: args.command(args))


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each help ends with an example."""
    parser = OneLineParser(
        prog=PROGRAM,
        description="Whole genomes to shards of token ids for pretraining.",
        epilog="example:\n  python -m data_prep build yeast.fa.gz --out yeast --val-fraction 0.05",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_build, _add_verify, _add_inspect, _add_stats, _add_train_bpe, _add_simulate):
        add(subparsers)
    return parser


def _command(
    subparsers: Any, command: Callable[[argparse.Namespace], int], name: str, text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text.partition(".")[0],
        description=text,
        epilog=f"example:\n  {PROGRAM} {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command, parser=parser)
    return parser


def _number(parser: Any, flag: str, default: int, text: str) -> None:
    parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} ({default})")


def _workers(parser: Any) -> None:
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one a core); under mpirun: the ranks")


def _folder(parser: Any) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of a finished build")


def _add_build(subparsers: Any) -> None:
    parser = _command(
        subparsers, commands.build, "build",
        "FASTA files to shards and a manifest. The shards' bytes depend on the files and options alone, not on the\n"
        "number of workers or ranks. An unfinished build in DIR goes on where it stopped.",
        "yeast.fa.gz --out yeast --val-fraction 0.05\n"
        "  mpirun -n 64 python -m data_prep build --list genomes.txt --out shards --test-contigs 'human:chr8'",
    )  # fmt: skip
    parser.add_argument("fasta", nargs="*", metavar="GENOME.fa", help=_FASTA)
    parser.add_argument("--list", metavar="FILE", help="a file with one FASTA, or NAME=FASTA, a line")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to fill")
    parser.add_argument("--tokenizer", default="kmer", metavar="kmer|FILE.model", help="k-mers, or a BPE model (kmer)")
    parser.add_argument("--k", type=int, metavar="K", help="bases of a k-mer, 3 to 8 (6)")
    parser.add_argument(
        "--strand", choices=["forward", "both"], default="forward",
        help="BPE only, whose ids can't be turned round at load time: store the reverse complement too (forward)",
    )  # fmt: skip
    _workers(parser)
    group = parser.add_argument_group("segments (units are tokens; with BPE, bases)")
    _number(group, "--segment-tokens", 1 << 16, "longest segment")
    _number(group, "--min-tokens", 1, "leave out runs of A, C, G, T that are shorter")
    _number(group, "--shard-tokens", 1 << 25, "largest shard, the unit of work of one process")
    group.add_argument(
        "--ambiguous", choices=["split", "unk"], default="split",
        help="at letters other than A, C, G, T: split, or keep short stretches as [UNK] (split)",
    )  # fmt: skip
    group.add_argument("--unk-bases", type=int, metavar="N", help="longest stretch that --ambiguous unk keeps (10)")
    group.add_argument("--rna", action="store_true", help="read U as T")
    group.add_argument("--record-soft-mask", action="store_true", help="note each segment's lower-case stretches")
    group = parser.add_argument_group("contigs and splits (NAME, GENOME:NAME, or patterns with * ? [ ])")
    for flag, text in (("include", "take only these"), ("exclude", "leave these out"),
                       ("val-contigs", "for validation"), ("test-contigs", "for testing")):  # fmt: skip
        group.add_argument(f"--{flag}", nargs="+", default=[], metavar="NAME", help=text)
    for split, text in (("val", "validation"), ("test", "testing")):
        group.add_argument(
            f"--{split}-fraction",
            type=float,
            default=0.0,
            metavar="F",
            help=f"part of the bases, in whole blocks, for {text}",
        )
    _number(group, "--block-bases", 100_000, "bases of a block")
    _number(group, "--seed", 0, "seed of the draw of blocks")


def _add_verify(subparsers: Any) -> None:
    parser = _command(
        subparsers, commands.verify, "verify",
        "Check every shard against the manifest. Checksums, counts, ids in range, every base accounted for, splits\n"
        "disjoint; ends with 1 and the shard's name on any fault.",
        "yeast --leakage 100",
    )  # fmt: skip
    _folder(parser)
    parser.add_argument("--leakage", type=int, metavar="BASES", help="report exact stretches that splits share, too")
    _workers(parser)


def _add_inspect(subparsers: Any) -> None:
    parser = _command(subparsers, commands.inspect, "inspect", "What a folder of shards holds.", "yeast --json")
    _folder(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    _number(parser, "--samples", 3, "stretches to show as bases")
    _number(parser, "--seed", 0, "seed of the draw of samples")


def _add_stats(subparsers: Any) -> None:
    parser = _command(
        subparsers, commands.stats, "stats", "Bases by reason, GC, segment lengths.", "yeast --plot lengths.png"
    )
    _folder(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--plot", metavar="FILE.png", help="write the histogram of segment lengths as a picture")
    _workers(parser)


def _add_train_bpe(subparsers: Any) -> None:
    parser = _command(
        subparsers, commands.train_bpe, "train-bpe",
        "A SentencePiece BPE model of DNA. It is trained on stretches drawn over all contigs.",
        "yeast.fa.gz --vocab-size 4096 --out yeast.model",
    )  # fmt: skip
    parser.add_argument("fasta", nargs="*", metavar="GENOME.fa", help=_FASTA)
    parser.add_argument("--list", metavar="FILE", help="a file with one FASTA, or NAME=FASTA, a line")
    parser.add_argument("--out", required=True, metavar="FILE.model", help="the model to write")
    _number(parser, "--vocab-size", 4096, "ids, special tokens included")
    _number(parser, "--sample-bases", 10_000_000, "bases to train on, about 50 bytes of memory each")
    _number(parser, "--seed", 0, "seed of the draw of stretches")
    parser.add_argument("--rna", action="store_true", help="read U as T")
    _workers(parser)


def _add_simulate(subparsers: Any) -> None:
    parser = _command(
        subparsers, commands.simulate, "simulate",
        "A simulated genome and labelled sequences. Writes genome.fa, train.csv, dev.csv and test.csv.",
        "--out demo --bases 4000000",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to fill")
    _number(parser, "--bases", 4_000_000, "size of the genome")
    _number(parser, "--rows", 1500, "rows of train.csv")
    _number(parser, "--seed", 0, "seed of everything drawn")
