"""Make train.csv, dev.csv and test.csv for fine-tuning from intervals and a genome."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.labels.near_duplicates import near_duplicates
from data_prep.labels.negatives import NegativeSampler, shuffle_sequence
from data_prep.labels.options import LabelsSettings
from data_prep.labels.report import NO_NEGATIVE, make_report
from data_prep.labels.sources import NEGATIVE, NEGATIVE_CLASS, class_and_path, place_windows, read_sources, taken_ranges
from data_prep.labels.splits import DEV, SPLITS, TEST, TRAIN, SplitMap, make_split_map
from data_prep.labels.windows import Dropped, LabelledWindows, Rows, SequenceReader, composition
from dnabert_rm.genome.kmer import reverse_complement
from dnabert_rm.genome.reference import Genome
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import atomic_outputs, check_not_input, writable_parent

COLUMNS = ("sequence", "label", "contig", "start", "end", "strand")
REPORT_NAME = "labels.json"


def make_labels(settings: LabelsSettings) -> dict[str, Any]:
    """Write the tables and labels.json into the output folder. Return the content of labels.json.

    Raises `ConfigError` or `DataError` for flags and files that can't be used. Then nothing is written.
    """
    outputs = [settings.out / name for name in (*(f"{split}.csv" for split in SPLITS), REPORT_NAME)]
    check_outputs(settings, outputs)
    dropped = Dropped()
    with Genome(settings.fasta) as genome:
        sources = read_sources(settings, genome)
        reader = SequenceReader(genome, settings.window)
        windows = place_windows(settings, sources, reader, dropped)
        split_map = make_split_map(settings, reader, windows)
        split = split_map.splits_of(reader.places(windows), settings.window)
        windows, split = dropped.keep(windows, split >= 0, "crosses the border of two splits"), split[split >= 0]
        rows, near = without_near_duplicates(settings, Rows(windows, split, reader.letters(windows)), dropped)
        kind = kind_of_negatives(settings, len(sources))
        if kind == "genome":
            sampler = NegativeSampler(settings, reader, split_map, taken_ranges(settings, sources, reader))
            negatives, missing = sampler.sample(rows.windows, composition(rows.letters), rows.split)
            dropped[NO_NEGATIVE] += int(missing.sum())
            negatives = as_negatives(negatives, len(sources))
            split = split_map.splits_of(reader.places(negatives), settings.window)
            found = Rows(negatives, split, reader.letters(negatives))
        elif kind == "shuffled":
            copies = rows[np.repeat(np.arange(len(rows.split)), settings.negatives_per_positive)]
            negatives = as_negatives(copies.windows, len(sources))
            found = Rows(negatives, copies.split, shuffled(copies.letters, settings.seed))
        if kind != "none":
            found = found[dropped.kept(~is_among(found.letters, rows.letters), "negative with the bases of a positive")]
            rows, near = without_near_duplicates(settings, rows.joined(found), dropped)
        check_splits(settings, rows, split_map)
        rows = rows[np.lexsort((rows.windows.is_negative, rows.windows.start, rows.windows.contig))]
        report = make_report(settings, sources, kind, rows, dropped, near)
        try:
            settings.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--out {settings.out}: can't be created ({error.strerror}); choose another folder"
            ) from None
        with atomic_outputs(*outputs) as temporary:
            for number, path in enumerate(temporary[:-1]):
                write_table(path, rows[rows.split == number], genome.names)
            temporary[-1].write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def check_outputs(settings: LabelsSettings, outputs: Sequence[Path]) -> None:
    """Raise `ConfigError` if the output folder can't be written, holds one of the files, or if that is an input."""
    writable_parent(settings.out, "--out")
    files = [settings.fasta, *(class_and_path(word)[1] for word in settings.files), settings.overlap]
    for output in outputs:
        check_not_input(output, [path for path in files if path is not None], "--out")
        if output.exists() and not settings.overwrite:
            raise ConfigError(
                f"--out {settings.out}: has {output.name} already; choose another folder or pass --overwrite"
            )


def without_near_duplicates(settings: LabelsSettings, rows: Rows, dropped: Dropped) -> tuple[Rows, dict[str, int]]:
    """Drop the rows of dev and test that resemble rows of earlier tables, unless they are kept.

    Returns: The rows, and the number of such rows in dev and test.
    """
    near = np.zeros(len(rows.split), dtype=bool)
    for number in (DEV, TEST):
        of_split = rows.split == number
        near[of_split] = near_duplicates(rows.letters[of_split], rows.letters[(rows.split < number) & ~near])
    counts = {SPLITS[number]: int(near[rows.split == number].sum()) for number in (DEV, TEST)}
    if settings.near_duplicates == "keep":
        return rows, counts
    return rows[dropped.kept(~near, "near-duplicate of a row in an earlier table")], dict.fromkeys(counts, 0)


def kind_of_negatives(settings: LabelsSettings, num_sources: int) -> str:
    """Return "genome", "shuffled" or "none"."""
    if settings.negatives != "auto":
        return settings.negatives
    return "genome" if settings.label == "file" and num_sources == 1 else "none"


def as_negatives(windows: LabelledWindows, num_sources: int) -> LabelledWindows:
    """Return windows with the label of negatives."""
    label = NEGATIVE if num_sources == 1 else NEGATIVE_CLASS
    return replace(windows, label=np.full(len(windows), label), is_negative=np.ones(len(windows), dtype=bool))


def is_among(letters: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return whether each sequence (n, window) is also one of `others` (m, window), on either strand, shape (n,)."""
    known = {row.tobytes().upper() for row in others}
    known |= {reverse_complement(text) for text in known}
    return np.array([row.tobytes().upper() in known for row in letters], dtype=bool)


def shuffled(letters: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Return each sequence (n, window) shuffled, with its counts of neighbouring pairs. Letters become upper case."""
    keys = random.fold(random.key(seed, "labels shuffle"), np.arange(len(letters)))
    rows = [shuffle_sequence(row.tobytes().upper(), key) for row, key in zip(letters, keys, strict=True)]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(letters.shape)


def check_splits(settings: LabelsSettings, rows: Rows, split_map: SplitMap) -> None:
    """Raise `ConfigError` if a wanted split is empty, if train has a single class, or if it lacks one of the others."""
    by_contigs = settings.val_contigs or settings.test_contigs, settings.val_contigs, settings.test_contigs
    for number, name in enumerate(SPLITS):
        is_wanted = number == TRAIN or settings.fractions[number - 1] > 0 or (split_map.split == number).any()
        if is_wanted and not (rows.split == number).any():
            fix = "choose smaller --block-bases, or other fractions"
            if by_contigs[number]:
                fix = "hold out other contigs, or leave out --val-contigs and --test-contigs to hold out random blocks"
            elif settings.prepared is not None:
                fix = "hold out other parts of the genome when you build --prepared"
            raise ConfigError(f"{name}.csv would have no row; {fix}")
    if settings.label == "score":
        return
    labels = [set(rows.windows.label[rows.split == number].tolist()) for number in range(len(SPLITS))]
    if len(labels[TRAIN]) < 2:
        raise ConfigError(
            f"all windows of train.csv have the label {labels[TRAIN].pop()}; pass --negatives genome, "
            "a second file, or --label name"
        )
    for number in (DEV, TEST):
        if unknown := sorted(labels[number] - labels[TRAIN]):
            raise ConfigError(
                f"{SPLITS[number]}.csv has a label that train.csv lacks ({unknown[0]}); choose other contigs or "
                "fractions, or labels that are more frequent"
            )


def write_table(path: Path, rows: Rows, names: list[str]) -> None:
    """Write one table. Sequences are in upper case."""
    windows, size = rows.windows, rows.letters.shape[1]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for letters, label, contig, start, is_minus in zip(
            rows.letters, windows.label, windows.contig, windows.start.tolist(), windows.is_minus, strict=True
        ):
            sequence = letters.tobytes().upper().decode("ascii")
            writer.writerow([sequence, label, names[contig], start, start + size, "-" if is_minus else "+"])
