"""`dnabert-rm show-batch`: the windows of one step with coordinates, k-mers and masks, as the model sees them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.checkpoint.run_folder import read_state
from dnabert_rm.cli.run_flags import add_run_flags, run_config
from dnabert_rm.config import RunConfig
from dnabert_rm.data.batching import BatchPlan, make_plan
from dnabert_rm.data.dataset import WindowDataset, make_dataset
from dnabert_rm.genome.kmer import MASK_ID, NUM_SPECIAL, codes_to_bases, kmer_codes, vocabulary
from dnabert_rm.masking.collator import IGNORE, RandomMaskCollator, make_collator
from dnabert_rm.masking.schedule import make_mask_schedule
from dnabert_rm.utils.errors import ConfigError

HELP = "show the windows and masks of one step, exactly as the model sees them"
EXAMPLE = """\
dnabert-rm show-batch --config runs/first/config.toml --step 600
dnabert-rm show-batch --data prepared --steps 100000 --step 60000 --json > batch.jsonl
"""

DEFAULT_SHOWN = 4
WINDOWS_AT_ONCE = 256
NO_RUN = "(no run)"
SEEN, MASKED, RANDOM, KEPT, UNKNOWN = ".", "M", "R", "=", "?"
COLOURS = {MASKED: "41;97", RANDOM: "43;30", KEPT: "42;30", UNKNOWN: "2", SEEN: ""}
LEGEND = f"{MASKED} [MASK]   {RANDOM} random k-mer   {KEPT} predicted but unchanged   {SEEN} seen   {UNKNOWN} unknown"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `pretrain`, and which step to show and how."""
    parser.add_argument("--step", type=int, required=True, metavar="N", help="optimizer step, from 0")
    parser.add_argument(
        "--first", type=int, metavar="N", help=f"show so many windows (default: {DEFAULT_SHOWN}; all with --json)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a window, in the global batch's order")
    parser.add_argument("--kmers", action="store_true", help="list the tokens instead of drawing them under the bases")
    add_run_flags(parser, "--step N [--kmers|--json]")


def run(args: argparse.Namespace) -> None:
    """Print the step's windows."""
    config = run_config(args, {"train": {"output": NO_RUN}})
    if not 0 <= args.step < config.train.steps:
        raise ConfigError(f"--step {args.step}: the run has steps 0 to {config.train.steps - 1}; see --steps")
    if args.first is not None and args.first < 1:
        raise ConfigError(f"--first {args.first}: must be at least 1")
    dataset = make_dataset(config)
    plan = batch_plan(config)
    rows = step_rows(
        dataset,
        make_collator(
            config, make_mask_schedule(config, dataset.tokenizer.k), plan.step_of, dataset.tokenizer.vocab_size
        ),
        plan,
        args.step,
        args.first,
    )
    if args.json:
        for row in rows:
            print(json.dumps(row))
        return
    limit = min(args.first or DEFAULT_SHOWN, plan.batch_of_step(args.step))
    print(f"step {args.step}: the first {limit} of {plan.batch_of_step(args.step)} windows\n{LEGEND}")
    painter = Painter(dataset, kmers=args.kmers)
    for _, row in zip(range(limit), rows, strict=False):
        print("\n" + painter.text(row))


def batch_plan(config: RunConfig) -> BatchPlan:
    """The global batch sizes of the run: those that its newest checkpoint has recorded, else the configuration's."""
    states = sorted(Path(config.train.output).glob("checkpoints/step_*/state.json"))
    if not states:
        return make_plan(config)
    return read_state(states[-1].parent).plan


def step_rows(
    dataset: WindowDataset, collator: RandomMaskCollator, plan: BatchPlan, step: int, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """The windows of a step in the global batch's order: what the training loop reads, by the same functions.

    Yields `n, step, phase, genome, contig, start, end, strand, span, input_ids, labels`.
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


class Painter:
    """Windows as text, in colour where standard output is a terminal that has it."""

    def __init__(self, dataset: WindowDataset, *, kmers: bool) -> None:
        self.k, self.stride = dataset.tokenizer.k, dataset.stride
        self.kmers = kmers or self.k is None
        self.coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.width = max(40, shutil.get_terminal_size((110, 24)).columns)

    def text(self, row: dict[str, Any]) -> str:
        """One window: a line on where it lies, then its tokens."""
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
        """The tokens as the model reads them, what is predicted coloured, or marked by `=` and `R` in front."""
        names = vocabulary(self.k) if self.k is not None else []
        words = [names[token] if names else str(token) for token in input_ids.tolist()]
        if not self.coloured:
            shown = [mark + word if mark in (RANDOM, KEPT) else word for word, mark in zip(words, marks, strict=True)]
            return textwrap.fill(" ".join(shown), self.width)
        per_line = max(1, self.width // (max(map(len, words)) + 1))
        painted = [self._painted(word, mark) for word, mark in zip(words, marks, strict=True)]
        return "\n".join(" ".join(painted[first : first + per_line]) for first in range(0, len(painted), per_line))

    def _bases(self, row: dict[str, Any], original: NDArray[np.int64], marks: list[str]) -> str:
        """The bases in reading direction; under each one the mark of the token that begins there."""
        assert self.k is not None
        bases = window_bases(original, self.k, self.stride)
        # Tokens with gaps between their first bases are drawn over their whole length.
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
    """One letter a token, as in `LEGEND`; (T,) arrays."""
    marks = np.full(len(input_ids), SEEN)
    marks[input_ids < NUM_SPECIAL] = UNKNOWN
    predicted = labels != IGNORE
    marks[predicted] = np.where(input_ids == MASK_ID, MASKED, np.where(input_ids == labels, KEPT, RANDOM))[predicted]
    return marks.tolist()


def window_bases(ids: NDArray[np.int64], k: int, stride: int) -> str:
    """The bases that k-mers with a stride cover, (T,) → (T - 1) * stride + k letters; N where only `[UNK]` does."""
    bases = np.full((len(ids) - 1) * stride + k, ord("N"), dtype=np.uint8)
    real = np.flatnonzero(ids >= NUM_SPECIAL)
    letters = np.frombuffer(codes_to_bases(kmer_codes(ids[real], k).reshape(-1)), dtype=np.uint8)
    bases[(real[:, None] * stride + np.arange(k)).reshape(-1)] = letters
    return bases.tobytes().decode()
