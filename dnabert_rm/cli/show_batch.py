"""Command `dnabert-rm show-batch`: print the windows of one step with coordinates, k-mers and masks."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.cli.run_flags import RunCommand, RunFlags
from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.data.batching import BatchPlan
from dnabert_rm.data.dataset import WindowDataset, make_dataset
from dnabert_rm.genome.kmer import MASK_ID, NUM_SPECIAL, codes_to_bases, kmer_codes, vocabulary
from dnabert_rm.masking.collator import IGNORE, RandomMaskCollator, make_collator
from dnabert_rm.masking.schedule import make_mask_schedule
from dnabert_rm.train.preflight import newest_checkpoint, remaining_plan
from dnabert_rm.utils.errors import ConfigError

DEFAULT_SHOWN = 4
WINDOWS_AT_ONCE = 256
NO_RUN = "(no run)"
SEEN = "."
MASKED = "M"
RANDOM = "R"
KEPT = "="
UNKNOWN = "?"
COLOURS = {MASKED: "41;97", RANDOM: "43;30", KEPT: "42;30", UNKNOWN: "2", SEEN: ""}
LEGEND = f"{MASKED} [MASK]   {RANDOM} random k-mer   {KEPT} predicted but unchanged   {SEEN} seen   {UNKNOWN} unknown"


@dataclass(frozen=True)
class ShowBatchSettings(Settings):
    """Flags of `show-batch`, in addition to the flags of a run configuration."""

    step: int = setting(metavar="N", minimum=0)
    """Optimizer step, counted from 0."""
    first: int | None = setting(None, metavar="N", minimum=1)
    """Number of windows to show; by default 4, or all with --json."""
    json: bool = False
    """Print one JSON object per window, in the order of the global batch."""
    kmers: bool = False
    """List the tokens instead of drawing them under the bases."""


def run(settings: ShowBatchSettings, flags: RunFlags) -> None:
    """Print the windows of the step."""
    config = flags.config({"train": {"output": NO_RUN}})
    step = settings.step
    if step >= config.train.steps:
        raise ConfigError(
            f"--step {step}: the run has steps 0 to {config.train.steps - 1}; choose one of them, or raise --steps"
        )
    dataset = make_dataset(config)
    newest = newest_checkpoint(config)
    plan, _ = remaining_plan(config, newest.state if newest else None)
    schedule = make_mask_schedule(config, dataset.tokenizer.k)
    collator = make_collator(config, schedule, plan.step_of, dataset.tokenizer.vocab_size)
    rows = step_rows(dataset, collator, plan, step, settings.first)
    if settings.json:
        for row in rows:
            print(json.dumps(row))
        return
    num_windows = plan.batch_of_step(step)
    limit = min(settings.first or DEFAULT_SHOWN, num_windows)
    print(f"step {step}: the first {limit} of {num_windows} windows\n{LEGEND}")
    printer = WindowPrinter(dataset, kmers=settings.kmers)
    for _, row in zip(range(limit), rows, strict=False):
        print("\n" + printer.text(row))
    if k := dataset.tokenizer.k:
        print(f"\nGuessing has a loss of k ln 4 = {k * math.log(4):.3f} nats per masked token (k = {k}).")


def step_rows(
    dataset: WindowDataset, collator: RandomMaskCollator, plan: BatchPlan, step: int, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the windows of a step in global-batch order, using the training loop's own functions.

    A window is a dictionary with keys `n, step, phase, genome, contig, start, end, strand, span, input_ids, labels`.
    """
    first = plan.first_sample(step)
    past = first + min(plan.batch_of_step(step), limit or plan.batch_of_step(step))
    for begin in range(first, past, WINDOWS_AT_ONCE):
        samples = np.arange(begin, min(begin + WINDOWS_AT_ONCE, past))
        windows = dataset.windows(samples, step)
        batch = collator.mask(windows.samples, windows.ids)
        labels = batch.labels()
        for row, place in enumerate(dataset.coordinates(samples, step)):
            yield {
                "n": int(samples[row]),
                "step": step,
                "phase": int(batch.phase[row]),
                **place,
                "span": int(batch.span[row]),
                "input_ids": batch.input_ids[row].tolist(),
                "labels": labels[row].tolist(),
            }


class WindowPrinter:
    """Formatter of windows as text, in colour if standard output is a terminal and NO_COLOR is not set."""

    def __init__(self, dataset: WindowDataset, *, kmers: bool) -> None:
        self.k, self.stride = dataset.tokenizer.k, dataset.stride
        self.kmers = kmers or self.k is None
        self.coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.width = max(40, shutil.get_terminal_size((110, 24)).columns)

    def text(self, row: dict[str, Any]) -> str:
        """Return one window as text: a line with its coordinates, then its tokens or bases."""
        input_ids, labels = (np.array(row[name][1:-1]) for name in ("input_ids", "labels"))
        marks, original = token_marks(input_ids, labels), np.where(labels == IGNORE, input_ids, labels)
        predicted = int((labels != IGNORE).sum())
        head = (
            f"n {row['n']}  {row['genome']} {row['contig']}:{row['start']}-{row['end']} {row['strand']}  phase "
            f"{row['phase']}  span {row['span']}  masked {predicted} of {len(labels)} ({predicted / len(labels):.1%})"
        )
        body = self._tokens(input_ids, marks) if self.kmers else self._bases(row, original, marks)
        return head + "\n" + body

    def _tokens(self, input_ids: NDArray[np.int64], marks: list[str]) -> str:
        """Return the input tokens as text, with prediction targets in colour.

        Without colour, `=` marks unchanged targets and `R` marks targets replaced by a random token.
        """
        names = vocabulary(self.k) if self.k is not None else []
        words = [names[token] if names else str(token) for token in input_ids.tolist()]
        if not self.coloured:
            shown = [mark + word if mark in (RANDOM, KEPT) else word for word, mark in zip(words, marks, strict=True)]
            return textwrap.fill(" ".join(shown), self.width)
        per_line = max(1, self.width // (max(map(len, words)) + 1))
        painted = [self._painted(word, mark) for word, mark in zip(words, marks, strict=True)]
        return "\n".join(" ".join(painted[first : first + per_line]) for first in range(0, len(painted), per_line))

    def _bases(self, row: dict[str, Any], original: NDArray[np.int64], marks: list[str]) -> str:
        """Return the bases in the order in which the model reads them, with the mask marks of the tokens below them.

        The mark of a token is below its first base. With non-overlapping k-mers it is below all of them.
        """
        assert self.k is not None
        bases = window_bases(original, self.k, self.stride)
        # The mark of a non-overlapping token is repeated over all its bases.
        track = "".join(mark * self.stride for mark in marks).ljust(len(bases))
        first, sign = (row["end"] - 1, -1) if row["strand"] == "-" else (row["start"], 1)
        digits = len(str(row["end"]))
        lines, per_line = [], self.width - digits - 1
        for begin in range(0, len(bases), per_line):
            part = slice(begin, begin + per_line)
            lines.append(f"{first + sign * begin:>{digits}} {bases[part]}")
            lines.append(" " * (digits + 1) + "".join(self._painted(mark, mark) for mark in track[part]))
        return "\n".join(line.rstrip() for line in lines)

    def _painted(self, text: str, mark: str) -> str:
        colour = COLOURS.get(mark, "") if self.coloured else ""
        return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def token_marks(input_ids: NDArray[np.int64], labels: NDArray[np.int64]) -> list[str]:
    """Return one mark per token: masked, random, kept, seen or unknown, as explained in `LEGEND`.

    Both arrays have one value per token.
    """
    marks = np.full(len(input_ids), SEEN)
    marks[input_ids < NUM_SPECIAL] = UNKNOWN
    predicted = labels != IGNORE
    marks[predicted] = np.where(input_ids == MASK_ID, MASKED, np.where(input_ids == labels, KEPT, RANDOM))[predicted]
    return marks.tolist()


def window_bases(ids: NDArray[np.int64], k: int, stride: int) -> str:
    """Return the bases of T k-mers that start `stride` bases apart: (T - 1) * stride + k letters.

    Bases that only special tokens cover are N.
    """
    bases = np.full((len(ids) - 1) * stride + k, ord("N"), dtype=np.uint8)
    real = np.flatnonzero(ids >= NUM_SPECIAL)
    letters = np.frombuffer(codes_to_bases(kmer_codes(ids[real], k).reshape(-1)), dtype=np.uint8)
    bases[(real[:, None] * stride + np.arange(k)).reshape(-1)] = letters
    return bases.tobytes().decode()


COMMAND = RunCommand(
    name="show-batch",
    help="show the windows and masks of one step, exactly as the model sees them",
    example=(
        "dnabert-rm show-batch --config runs/first/config.toml --step 600\n"
        "dnabert-rm show-batch --data prepared --steps 100000 --step 60000 --json > batch.jsonl"
    ),
    settings=ShowBatchSettings,
    run=run,
    usage="--step N [--kmers|--json]",
)
