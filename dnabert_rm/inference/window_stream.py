"""Streaming inference over a sequence file: cut windows, run the model, and join the outputs of overlapping windows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.inference.inference_settings import InferenceSettings
from dnabert_rm.inference.interval_regions import Regions, interval_regions
from dnabert_rm.inference.model_runner import chunked
from dnabert_rm.inference.sequence_input import (
    AnyTokenization,
    BpeTokenization,
    Region,
    Tokenization,
    Window,
    cut_windows,
    read_records,
    regions,
)
from dnabert_rm.tokenizer import BpeTokenizer, DnaTokenizer
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.progress import notice, progress_bar

BATCHES_SORTED = 16
"""Number of batches of windows that are sorted by length together."""

WindowOutput = tuple[Window, NDArray | None]
"""A window and the model's output for it, or None if the window has no known k-mer."""


@dataclass
class Tally:
    """Numbers of rows and bases, and the run time, for the final summary line."""

    rows: int = 0
    empty: int = 0
    """Rows without a result, because they have no known k-mer."""
    bases: int = 0
    """Bases that went through the model; a base in two windows counts twice."""
    seconds: float = 0.0

    def line(self, output: object) -> str:
        """Return a one-line summary that begins with the path of the output file."""
        rate = self.bases / max(self.seconds, 1e-9)
        empty = f", {self.empty:,} of them empty (no known k-mer)" if self.empty else ""
        done = f"{self.bases:,} bases through the model in {self.seconds:.1f} s, {rate:,.0f} bases/s"
        return f"{output}: {self.rows:,} rows{empty}; {done}"


def make_tokenization(tokenizer: DnaTokenizer, max_tokens: int) -> AnyTokenization:
    """Return the rules for cutting sequences into windows of at most `max_tokens` tokens, special tokens included."""
    if isinstance(tokenizer, BpeTokenizer):
        return BpeTokenization(tokenizer.token_ranges, max_tokens - 2)
    return Tokenization(tokenizer.k, tokenizer.step, max_tokens - 2)


def check_token_limits(settings: InferenceSettings, tokenization: AnyTokenization, positions: int) -> None:
    """Raise `ConfigError` if `--max-tokens` or `--tile` needs more positions than the model has."""
    max_kmers = tokenization.max_kmers
    if max_kmers + 2 > positions:
        raise ConfigError(
            f"--max-tokens {max_kmers + 2}: the model has {positions} positions; pass {positions} or less"
        )
    if settings.tile is None or settings.long is not None or isinstance(tokenization, BpeTokenization):
        return  # the number of BPE tokens in a tile is not known in advance
    if (num_kmers := tokenization.num_kmers(settings.tile)) > max_kmers:
        raise ConfigError(
            f"--tile {settings.tile}: has {num_kmers} tokens, but the model takes {max_kmers} at once;"
            f" pass {tokenization.num_bases(max_kmers)} or less, or cut tiles with --long"
        )


def describe_tiles(settings: InferenceSettings) -> str:
    """Return a sentence that says how many times each base goes through the model, or "" if only once."""
    tile = settings.tile
    step = settings.step
    if tile is None or step is None or tile == step:
        return ""
    tiles = f"tiles of {tile:,} bases every {step:,}"
    if step > tile:
        return f"{tiles}: {tile / step:.1%} of the bases go through the model"
    times = f"{tile / step:,.0f}" if tile >= 100 * step else f"{tile / step:.3g}"
    return f"{tiles}: each base goes through the model {times} times"


class InputPosition:
    """Counter of input bases for the progress bar. A base in several windows of a record counts once.

    `separate`: Regions are intervals, each of which counts all its bases.
    """

    def __init__(self, separate: bool = False) -> None:
        self._separate = separate
        self._region: Region | None = None
        self._end = 0
        """Bases of the current record that are already counted."""

    def advance(self, window: Window) -> int:
        """Count bases up to the end of `window`, and return the number of newly counted bases.

        Pass windows in input order.
        """
        if window.region is not self._region and (self._separate or window.region.start == 0):
            self._end = window.region.start
        self._region = window.region
        end = window.region.end if window.is_last else window.start + len(window.sequence)
        num_bases = max(0, end - self._end)
        self._end += num_bases
        return num_bases


@contextlib.contextmanager
def open_regions(settings: InferenceSettings, forward_only: bool) -> Iterator[tuple[Regions, int | None]]:
    """Yield the regions of --input or --regions, each with its sequence, and their number of bases if it is known."""
    if settings.input is None:
        with interval_regions(settings, forward_only) as found:
            yield found
        return
    with Input(settings.input, "FASTA, or a table with the column sequence,") as source:
        records = read_records(source, settings.id_column)
        # Most bytes of an uncompressed file are bases.
        size = None if source.is_compressed else source.size
        yield regions(records, settings.tile, settings.step), size


def model_outputs(
    settings: InferenceSettings,
    tokenization: AnyTokenization,
    long: str,
    forward: Callable[[list[bytes]], list[NDArray | None]],
    tally: Tally,
    batches_sorted: int = BATCHES_SORTED,
    forward_only: bool = False,
) -> Iterator[WindowOutput]:
    """Yield every window of the input, in order, with the output of `forward` for the window's sequence.

    Shows a progress bar and updates `tally`. At most `batches_sorted` batches of windows are in memory at once.
    `forward_only` reads all intervals of --regions from the forward strand.
    """
    start_time = time.monotonic()
    if work := describe_tiles(settings):
        notice(work)
    position = InputPosition(separate=settings.regions is not None)
    num_windows = 0
    with (
        open_regions(settings, forward_only) as (found, num_bases),
        progress_bar("sequences", num_bases, "base") as bar,
    ):
        windows = (window for region, blocks in found for window in cut_windows(region, blocks, tokenization, long))
        for group in chunked(windows, settings.batch_size * batches_sorted):
            outputs = list(zip(group, forward([window.sequence for window in group]), strict=True))
            tally.bases += sum(len(window.sequence) for window, output in outputs if output is not None)
            yield from outputs
            tally.seconds = time.monotonic() - start_time
            num_windows += len(group)
            bar.set_postfix_str(f"{num_windows:,} windows", refresh=False)
            bar.update(sum(position.advance(window) for window in group))


def group_by_region(outputs: Iterable[WindowOutput]) -> Iterator[tuple[Region, Iterator[WindowOutput]]]:
    """Yield each region (a whole record or one tile) with its windows.

    Consume the windows before requesting the next region.
    """
    outputs = iter(outputs)
    for first in outputs:

        def windows_of_region(current: WindowOutput = first) -> Iterator[WindowOutput]:
            yield current
            while not current[0].is_last:
                current = next(outputs)
                yield current

        yield first[0].region, windows_of_region()


class RunningMean:
    """Running mean of the outputs of overlapping windows, for each position of a sequence.

    A position is a token or a base, and has `width` values. Add windows in the order of their starts. Call `pop`
    before each new window to limit memory to about one window.
    """

    def __init__(self, width: int):
        self.width = width
        self.start = 0
        """First position that has not been released."""
        self._sums = np.zeros((0, width))
        self._counts = np.zeros((0, 1))

    def extend(self, start: int, end: int) -> None:
        """Add the positions `start` … `end` - 1. A position's mean is NaN until `add` gives it a value."""
        if not len(self._counts):
            self.start = start
        if (missing := end - self.start - len(self._counts)) > 0:
            self._sums = np.concatenate((self._sums, np.zeros((missing, self.width))))
            self._counts = np.concatenate((self._counts, np.zeros((missing, 1))))

    def add(self, start: int, values: NDArray, step: int = 1, covered: int = 1) -> None:
        """Add the values of consecutive tokens, shape (tokens, width).

        Token i's values are added to each of the `covered` consecutive positions that begin at start + i * step.
        """
        last = (len(values) - 1) * step
        self.extend(start, start + last + covered)
        for offset in range(start - self.start, start - self.start + covered):
            positions = slice(offset, offset + last + 1, step)
            self._sums[positions] += values
            self._counts[positions] += 1

    def pop(self, until: int | None = None) -> NDArray[np.float64]:
        """Remove and return the means of the positions before `until`, by default of all positions.

        The result has shape (positions, width).
        """
        n = len(self._counts) if until is None else min(len(self._counts), max(0, until - self.start))
        with np.errstate(invalid="ignore"):
            means = self._sums[:n] / self._counts[:n]
        self._sums = self._sums[n:]
        self._counts = self._counts[n:]
        self.start += n
        return means
