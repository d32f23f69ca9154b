"""Speed of preparing FASTA into verified shards, compared with DNABERT's method and the machine's limit.

    python benchmarks/data_prep.py [--bases 1000000000] [--folder DIR]

Every round runs every row once. The figures are the best over the rounds, in wall and processor time, because other
load disturbs the best round least. `build` and `verify` are whole commands, interpreter start included. DNABERT's
method is measured on fewer bases.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnabert_rm.genome import kmer

CONTIG_BASES = 250_000_000
LINE_BASES = 60
PEER_BASES = 510_000
PEER_LINE_TOKENS = 510
K = 6
_COMMAND = """
import re, resource, sys
from data_prep.cli import main
code = main(sys.argv[1:])
# This process's own ru_maxrss begins with the size of the benchmark, which started it.
own = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
print("peak", max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


@dataclass
class Row:
    """One line of the table: the best wall and processor seconds over the rounds, and the peak memory."""

    what: str
    bases: int
    run: Callable[[], int | None]
    wall: float = math.inf
    processor: float = math.inf
    peak_kilobytes: int = 0

    def measure(self) -> None:
        """Run the row once more."""
        before, start = processor_seconds(), time.perf_counter()
        peak = self.run()
        self.wall = min(self.wall, time.perf_counter() - start)
        self.processor = min(self.processor, processor_seconds() - before)
        self.peak_kilobytes = max(self.peak_kilobytes, peak or 0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=int, default=1_000_000_000, help="bases of the random genome (1000000000)")
    parser.add_argument("--folder", help="folder to write to (default: a temporary one)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every row (3)")
    args = parser.parse_args()
    # The peers must use one core, too.
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = make_rows(Path(folder), args.bases)
        for number in range(args.rounds):
            for row in rows:
                print(f"round {number + 1} of {args.rounds}: {row.what}", file=sys.stderr)
                row.measure()
    print_table(rows, min(args.bases, CONTIG_BASES))


def make_rows(folder: Path, bases: int) -> list[Row]:
    """Write the input and return the rows, the peer first."""
    fasta, out = folder / "genome.fa", folder / "out"
    # In a separate process, so that its memory does not count for the build.
    subprocess.run([sys.executable, __file__, "--make", str(fasta), str(bases)], check=True)
    sequence = "".join(np.random.default_rng(0).choice(list("ACGT"), PEER_BASES))
    lines = joined_lines(sequence)
    tokenize(lines[:1])

    def command(*words: object) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _COMMAND, *map(str, words)], check=True, capture_output=True, text=True
        )
        return int(done.stdout.split()[-1])

    def build(workers: int) -> int:
        shutil.rmtree(out, ignore_errors=True)
        return command("build", fasta, "--out", out, "--workers", workers)

    return [
        Row("DNABERT's way: join k-mers with spaces, fast tokenizer", PEER_BASES, lambda: dnabert_way(sequence)),
        Row("transformers' fast tokenizer, k-mers joined already", PEER_BASES, lambda: tokenize(lines) and None),
        Row("limit: read the FASTA, write and fsync 2 bytes a base", bases, lambda: raw_copy(fasta, folder)),
        Row("build, 2 workers", bases, lambda: build(2)),
        Row("build, 1 worker", bases, lambda: build(1)),
        Row("verify, 1 worker", bases, lambda: command("verify", out, "--workers", 1)),
    ]


def print_table(rows: list[Row], contig_bases: int) -> None:
    """Print rates by wall and by processor time, each also as a multiple of DNABERT's rate."""
    print(f"{'million bases per second':58}{'wall':>9}{'':9}{'processor':>9}   ({os.cpu_count()} cores)")
    peer = rows[0]
    two, one, check = rows[-3:]
    both = Row(
        "build and verify, 1 worker", one.bases, lambda: None, one.wall + check.wall, one.processor + check.processor
    )
    for row in [*rows, both]:
        times = [(row.wall, peer.wall), (row.processor, peer.processor)]
        rates = "".join(f"{row.bases / t / 1e6:9.2f}{row.bases / t / (peer.bases / p):7.0f} x" for t, p in times)
        print(f"{row.what:58}{rates}")
    peak = max(row.peak_kilobytes for row in rows) / 1024
    print(
        f"second worker: {one.wall / two.wall:.2f} x; peak memory {peak:.0f} MiB/process, contigs of {contig_bases:,}"
    )


def processor_seconds() -> float:
    """Return the user and system time of this process and of its finished children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def raw_copy(fasta: Path, folder: Path) -> None:
    """Do only the unavoidable work: read the input, and write as many bytes to the disk as the shards have."""
    target = folder / "raw"
    with open(fasta, "rb", buffering=0) as source, open(target, "wb", buffering=0) as out:
        while block := source.read(1 << 20):
            out.write(block)
            out.write(block)
        os.fsync(out.fileno())
    target.unlink()


def joined_lines(sequence: str) -> list[str]:
    """Return lines of 510 overlapping k-mers joined by spaces, as in DNABERT's pretraining files."""
    width = PEER_LINE_TOKENS
    pieces = [sequence[i : i + width + K - 1] for i in range(0, len(sequence), width)]
    return [" ".join(piece[i : i + K] for i in range(len(piece) - K + 1)) for piece in pieces]


def tokenize(lines: list[str]) -> list[list[int]]:
    """Tokenize lines as one batch, by transformers' fast BERT tokenizer with DNABERT's vocabulary."""
    from transformers import BertTokenizerFast

    with tempfile.NamedTemporaryFile("w", suffix=".txt") as vocabulary:
        vocabulary.write(kmer.vocabulary_text(K))
        vocabulary.flush()
        tokenizer = BertTokenizerFast(vocabulary.name, do_lower_case=False)
    ids: list[list[int]] = tokenizer(lines, add_special_tokens=False)["input_ids"]
    return ids


def dnabert_way(sequence: str) -> None:
    """Join k-mers with spaces, tokenize the text, and keep the ids in memory."""
    ids = tokenize(joined_lines(sequence))
    assert ids[0] == kmer.encode(sequence[: PEER_LINE_TOKENS + K - 1], K).tolist()


def make_fasta(path: str, bases: int) -> None:
    """Write a random genome in contigs of at most `CONTIG_BASES`, 60 letters per line, half of them lower case."""
    letters = np.frombuffer(b"ACGTacgt", np.uint8)
    rng = np.random.default_rng(0)
    block = np.full((100_000, LINE_BASES + 1), ord("\n"), np.uint8)
    block[:, :LINE_BASES] = letters[rng.integers(0, 8, (100_000, LINE_BASES), dtype=np.uint8)]
    with open(path, "wb") as out:
        for contig, start in enumerate(range(0, bases, CONTIG_BASES), 1):
            out.write(f">contig{contig}\n".encode())
            remaining = min(CONTIG_BASES, bases - start)
            while remaining > 0:
                lines = min(len(block), -(-remaining // LINE_BASES))
                out.write(np.roll(block[:lines], int(rng.integers(lines)), axis=0).tobytes())
                remaining -= lines * LINE_BASES


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make_fasta(sys.argv[2], int(sys.argv[3]))
    else:
        main()
