"""Command `stats`: report GC content, bases per token, a histogram of segment lengths, and the bases left out."""

from __future__ import annotations

import json
import sys
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.decode import make_decoder
from data_prep.inspect import describe
from data_prep.parallel import run_all
from dnabert_rm.data.manifest import SPLITS, Manifest, TokenizerInfo, load_manifest
from dnabert_rm.data.shards import read_segments
from dnabert_rm.genome.kmer import AMBIGUOUS, BASE_ORDER
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import check_not_input
from dnabert_rm.utils.progress import progress_bar

_MAX_BAR_CHARACTERS = 40
_BAR_CHARACTERS = "█#"
"""Characters for bars: "#" is for terminals that can't show "█"."""


class CountTask(NamedTuple):
    """Everything that a worker needs to count the bases of one shard."""

    path: Path
    tokenizer: TokenizerInfo


def run(folder: Path, as_json: bool, plot: str | None, executor: Executor) -> int:
    """Run `stats`: print a table or one JSON object. If `plot` is given, also write the histogram to that file."""
    manifest = load_manifest(folder)
    if plot is not None:
        check_not_input(Path(plot), [folder], "--plot")
    content = collect(manifest, folder, executor)
    if plot is not None:
        draw_histogram(content["segment_tokens"], Path(plot))
    print(json.dumps(content) if as_json else as_text(folder, content))
    return 0


def collect(manifest: Manifest, folder: Path, executor: Executor) -> dict[str, Any]:
    """Return the summary of `inspect`, extended by a histogram of segment lengths.

    The summary of each split also has its base counts, GC content and bases per token.
    """
    content = describe(manifest, folder)
    letters = {split: np.zeros(AMBIGUOUS + 1, dtype=np.int64) for split in SPLITS}
    tasks = [CountTask(folder / shard.name, manifest.tokenizer) for shard in manifest.shards]
    with progress_bar("stats", sum(shard.tokens for shard in manifest.shards), "base") as bar:
        for index, counts in run_all(executor, count_letters, tasks):
            letters[manifest.shards[index].split] += counts
            bar.update(manifest.shards[index].tokens)
    strands = 2 if manifest.options.get("strand") == "both" else 1
    for split, row in content["splits"].items():
        counts = letters[split]
        row["letters"] = dict(zip(f"{BASE_ORDER}N", counts.tolist(), strict=True))
        row["gc"] = float(counts[2:4].sum() / max(1, counts[:4].sum()))
        row["bases_per_token"] = strands * row["bases"] / row["tokens"]
    lengths = np.concatenate([shard.segments for shard in manifest.shards])
    return {**content, "segment_tokens": histogram(lengths)}


def count_letters(task: CountTask) -> NDArray[np.int64]:
    """Return the numbers of A, T, C, G and ambiguous bases in a shard's forward-strand segments, shape (5,).

    Bases that a segment shares with the segment before it count once.
    """
    decode = make_decoder(task.tokenizer, task.path.parent)
    counts = np.zeros(AMBIGUOUS + 1, dtype=np.int64)
    last_contig = ("", "")
    reached = 0
    for _, meta, ids in read_segments(task.path):
        if meta.get("strand") == "-":
            continue
        contig = (meta["genome"], meta["contig"])
        shared = max(0, reached - meta["start"]) if contig == last_contig else 0
        counts += np.bincount(decode(ids)[shared:], minlength=AMBIGUOUS + 1)
        last_contig = contig
        reached = meta["end"]
    return counts


def histogram(lengths: NDArray[np.int64]) -> list[dict[str, int]]:
    """Return the histogram of segment lengths: for each bin, the number of `segments` and their total `tokens`.

    A bin holds lengths of at least `from` and less than `to` tokens. The bounds of bins are powers of two.
    """
    power = np.floor(np.log2(lengths)).astype(int)
    return [
        {
            "from": 1 << int(p),
            "to": 2 << int(p),
            "segments": int((power == p).sum()),
            "tokens": int(lengths[power == p].sum()),
        }
        for p in range(power.min(), power.max() + 1)
    ]


def as_text(folder: Path, content: dict[str, Any]) -> str:
    """Format the result of `collect` as a table and a histogram."""
    lines = [f"{folder}: {content['bases']:,} bases in {content['contigs']} contigs", ""]
    lines.append(f"{'split':8}{'shards':>8}{'segments':>12}{'tokens':>16}{'bases':>16}{'bases/token':>13}{'GC %':>8}")
    for split, row in content["splits"].items():
        lines.append(
            f"{split:8}{row['shards']:>8,}{row['segments']:>12,}{row['tokens']:>16,}{row['bases']:>16,}"
            f"{row['bases_per_token']:>13.3f}{100 * row['gc']:>8.2f}"
        )
    for reason, bases in content["left_out"].items():
        lines.append(f"left out, {reason.replace('_', ' ')}: {bases:,} bases")
    bar_character = next(letter for letter in _BAR_CHARACTERS if _can_print(letter))
    lines += ["", "tokens per segment      segments          tokens"]
    most = max(row["segments"] for row in content["segment_tokens"])
    for row in content["segment_tokens"]:
        bar = bar_character * -(-_MAX_BAR_CHARACTERS * row["segments"] // most)
        lines.append(
            f"{row['from']:>9,} - {row['to'] - 1:<9,} {row['segments']:>12,} {row['tokens']:>15,}  {bar}".rstrip()
        )
    return "\n".join(lines)


def _can_print(text: str) -> bool:
    """Return whether standard output's encoding has all characters of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def draw_histogram(rows: list[dict[str, int]], path: Path) -> None:
    """Write the histogram of segment lengths as an image. The suffix of `path` selects PNG, PDF or SVG."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot: requires matplotlib; run pip install 'dnabert_rm[plots]'") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.bar([str(row["from"]) for row in rows], [row["segments"] for row in rows], color="#4477aa")
    axes.set(xlabel="tokens per segment (lower bound of the bin)", ylabel="segments", title="Segment lengths")
    axes.tick_params(axis="x", rotation=60)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: cannot be written ({error}); choose another file") from None
