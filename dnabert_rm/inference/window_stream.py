"""From a sequence file to answers in its order: windows, batches across records, progress, results joined again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.inference.inference_settings import InferenceSettings
from dnabert_rm.inference.model_runner import in_groups
from dnabert_rm.inference.sequence_input import Tokens, Window, read_records, units, windows_of
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.progress import progress_bar

BATCHES_SORTED = 16
"""Windows of so many batches are sorted by length together."""


Outputs = Iterable[tuple[Window, NDArray | None]]
"""Windows in the file's order, and what the model says of each; None where it was not asked."""


@dataclass
class Tally:
    """What was done, for the last line."""

    rows: int = 0
    empty: int = 0
    """Rows without an answer: not one k-mer in them is known."""
    bases: int = 0
    """Bases of the windows that went through the model, a base in two windows twice."""
    seconds: float = 0.0

    def line(self, output: object) -> str:
        """One line for the user."""
        rate = self.bases / max(self.seconds, 1e-9)
        empty = f", {self.empty:,} of them empty (no known k-mer)" if self.empty else ""
        done = f"{self.bases:,} bases through the model in {self.seconds:.1f} s, {rate:,.0f} bases/s"
        return f"{output}: {self.rows:,} rows{empty}; {done}"


def allowed_tokens(settings: InferenceSettings, tokens: Tokens, positions: int) -> None:
    """`ConfigError` where the model has too few positions for what is asked."""
    if tokens.room + 2 > positions:
        raise ConfigError(f"--max-tokens {tokens.room + 2}: the model has {positions} positions; pass at most that")
    if settings.tile and settings.long is None and tokens.count(settings.tile) > tokens.room:
        raise ConfigError(
            f"--tile {settings.tile}: has {tokens.count(settings.tile)} tokens, the model takes {tokens.room} at once;"
            f" pass at most {tokens.bases(tokens.room)}, or --long window or middle for larger tiles"
        )


def model_outputs(
    settings: InferenceSettings,
    tokens: Tokens,
    long: str,
    ask: Callable[[list[bytes]], list[NDArray | None]],
    tally: Tally,
    num_sorted: int = BATCHES_SORTED,
) -> Iterator[tuple[Window, NDArray | None]]:
    """Every window of the input in order, and what `ask` says of its letters; shows progress, counts in `tally`.

    Memory holds `num_sorted` batches of windows, whatever the length of the file and its records.
    """
    began = time.monotonic()
    with (
        Input(settings.input, "FASTA, or a table with the column sequence,") as source,
        progress_bar("sequences", source.size, "byte") as bar,
    ):
        records = units(read_records(source, settings.id_column), settings.tile, settings.step)
        windows = (window for unit, blocks in records for window in windows_of(unit, blocks, tokens, long))
        for group in in_groups(windows, settings.batch_size * num_sorted):
            answers = ask([window.letters for window in group])
            asked = [window for window, answer in zip(group, answers, strict=True) if answer is not None]
            tally.bases += sum(len(window.letters) for window in asked)
            yield from zip(group, answers, strict=True)
            tally.seconds = time.monotonic() - began
            bar.update(source.position - bar.n)


def group_by_unit(answers: Outputs) -> Iterator[Iterator[tuple[Window, NDArray | None]]]:
    """The windows of one unit after another; each is to be used up before the next."""
    answers = iter(answers)
    for first in answers:

        def rest(at: tuple[Window, NDArray | None] = first) -> Iterator[tuple[Window, NDArray | None]]:
            yield at
            while not at[0].is_last:
                at = next(answers)
                yield at

        yield rest()


class Track:
    """Means of values at positions that several windows cover, given out once no later window can change them.

    `width` values a position. Windows come by rising start; memory holds the positions of about one window.
    """

    def __init__(self, width: int):
        self.width = width
        self.start = 0
        """The first position that was not given out."""
        self._sums = np.zeros((0, width))
        self._counts = np.zeros((0, 1))

    def cover(self, at: int, end: int) -> None:
        """Positions `at` … `end` - 1 exist, whether they get values or not."""
        if not len(self._counts):
            self.start = at
        if (missing := end - self.start - len(self._counts)) > 0:
            self._sums = np.concatenate((self._sums, np.zeros((missing, self.width))))
            self._counts = np.concatenate((self._counts, np.zeros((missing, 1))))

    def add(self, at: int, values: NDArray, step: int = 1, covered: int = 1) -> None:
        """Value i of `values` (T, width), T > 0, counts for the positions at + i * step … + covered - 1."""
        last = (len(values) - 1) * step
        self.cover(at, at + last + covered)
        for offset in range(at - self.start, at - self.start + covered):
            coordinates = slice(offset, offset + last + 1, step)
            self._sums[coordinates] += values
            self._counts[coordinates] += 1

    def take(self, until: int | None = None) -> NDArray[np.float64]:
        """Means (n, width) of the positions before `until`, all by default; NaN where no window had a value."""
        n = len(self._counts) if until is None else min(len(self._counts), max(0, until - self.start))
        with np.errstate(invalid="ignore"):
            means = self._sums[:n] / self._counts[:n]
        self._sums, self._counts, self.start = self._sums[n:], self._counts[n:], self.start + n
        return means
