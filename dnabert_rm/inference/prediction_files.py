"""Files of predictions: a CSV table, or a bedGraph or BED track for a genome browser.

bedGraph: genome.ucsc.edu/goldenPath/help/bedgraph.html. BED: samtools.github.io/hts-specs/BEDv1.pdf.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from dnabert_rm.finetune.tasks import Regression, SequenceClassification
from dnabert_rm.inference.inference_settings import BEDGRAPH_ENDINGS
from dnabert_rm.inference.output_files import text_ending
from dnabert_rm.inference.prediction_head import Head
from dnabert_rm.utils.errors import ConfigError

BED_ENDING = ".bed"
MAX_SCORE = 1000
"""Largest score in a BED file."""


class PredictionFile(Protocol):
    """A file that takes one row per sequence, interval, tile or base."""

    def write(self, place: Sequence[Any], cells: Sequence[str]) -> None:
        """Write a row. `place` are the values of the name columns, `cells` those of the prediction columns."""


class CsvTable:
    """A table with the name columns and the prediction columns."""

    def __init__(self, stream: TextIO, columns: Sequence[str], head: Head) -> None:
        """Write the header."""
        self._writer = csv.writer(stream, lineterminator="\n")
        self._writer.writerow([*columns, *head.task.prediction_columns()])

    def write(self, place: Sequence[Any], cells: Sequence[str]) -> None:
        """Write a row."""
        self._writer.writerow([*place, *cells])


class BedGraph:
    """A bedGraph file with one number per range. Rows without a prediction are left out."""

    def __init__(self, stream: TextIO, label: str, index: int) -> None:
        """Write the header. `index` is the prediction column that holds the number of `label`."""
        self._stream, self._index = stream, index
        name = label.replace('"', "'")
        stream.write(f'track type=bedGraph name="{name}" autoScale=on\n')

    def write(self, place: Sequence[Any], cells: Sequence[str]) -> None:
        """Write a row. Rows must be sorted, and must not overlap."""
        contig, start, end = as_range(place)
        if value := cells[self._index]:
            self._stream.write(f"{contig}\t{start}\t{end}\t{value}\n")


class Bed:
    """A BED file: contig, start, end, name, score and strand. Rows without a prediction are left out.

    The name is that of the interval, or else the prediction. The score is 1000 times a probability: that of the second
    of two classes, or of the predicted one among several. It is 0 if there is none.
    """

    def __init__(self, stream: TextIO, head: Head) -> None:
        """Prepare a file for the predictions of `head`."""
        self._stream = stream
        self._labels = [] if isinstance(head.task, Regression) else list(head.labels)
        self._shows_second = isinstance(head.task, SequenceClassification) and len(self._labels) == 2

    def write(self, place: Sequence[Any], cells: Sequence[str]) -> None:
        """Write a row."""
        contig, start, end = as_range(place)
        prediction = cells[0]
        if prediction or any(cells):
            share = 0.0
            if prediction in self._labels:
                share = float(cells[-1] if self._shows_second else cells[1 + self._labels.index(prediction)])
            strand, name = (place[3], place[4]) if len(place) > 4 else (".", "")
            name = name or prediction or "."
            self._stream.write(f"{contig}\t{start}\t{end}\t{name}\t{round(MAX_SCORE * share)}\t{strand}\n")


def as_range(place: Sequence[Any]) -> tuple[str, int, int]:
    """Return contig, start and end of a row's name columns. A base has only its position."""
    return place[0], place[1], place[2] if len(place) > 2 else place[1] + 1


def open_prediction_file(
    path: Path, stream: TextIO, columns: Sequence[str], head: Head, track: str | None
) -> PredictionFile:
    """Return the file that the ending of `path` names, without .gz, on the open `stream`.

    Args:
        columns: Name columns, such as contig, start and end.
        track: Label whose number a bedGraph file holds.

    Raises `ConfigError` for a track file if the rows have no coordinates, and if `track` is needed, unknown or useless.
    """
    ending = text_ending(path)
    if ending not in (*BEDGRAPH_ENDINGS, BED_ENDING):
        if track is not None:
            raise ConfigError(f"--track {track}: chooses the numbers of a .bedGraph file; omit it for {path.name}")
        return CsvTable(stream, columns, head)
    if len(columns) < 2:
        raise ConfigError(f"--output {path}: a track needs coordinates; pass --tile BASES, or --regions and --fasta")
    if ending == BED_ENDING:
        if track is not None:
            raise ConfigError(f"--track {track}: chooses the numbers of a .bedGraph file; omit it for {path.name}")
        return Bed(stream, head)
    labels = list(head.labels)
    if track is None and len(labels) <= 2:
        track = labels[-1]
    if track not in labels:
        given = "" if track is None else f" {track}"
        raise ConfigError(f"--track{given}: pass one of the model's labels: {', '.join(labels)}")
    names = head.task.prediction_columns()
    return BedGraph(stream, track, len(names) - len(labels) + labels.index(track))
