"""Measure frozen embeddings: linear probes of every layer on the data sets of a folder, beside simple baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

from dnabert_rm.evaluate.data_sets import choose_sets, find_sets, other_suite_warning
from dnabert_rm.evaluate.probes.probe_cnn import fit_cnn
from dnabert_rm.evaluate.probes.probe_data import Division, ProbeSet, read_probe_set, reason_not_to_probe
from dnabert_rm.evaluate.probes.probe_embeddings import SetEmbeddings, TableEmbedder, open_embedder
from dnabert_rm.evaluate.probes.probe_fit import ALPHAS, STRENGTHS, Candidate, Fit, fit_best
from dnabert_rm.evaluate.probes.probe_kmers import fit_kmers, kmer_candidates
from dnabert_rm.evaluate.probes.probe_results import JSON_FILE, PLOT_FILE, Measurement, write_results
from dnabert_rm.evaluate.probes.probe_settings import ProbeSettings
from dnabert_rm.evaluate.suite import Suite, load_suite
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import writable_parent
from dnabert_rm.utils.progress import notice

FitOnce = Callable[[Division, int], Fit]
"""Function that fits one method on a division of the rows with a seed."""


def evaluate_probe(settings: ProbeSettings) -> str:
    """Measure all models and baselines on all data sets, and write the results. Return the table as Markdown.

    Raises `ConfigError`, `DataError` or `CheckpointError` for a bad input, before any embedding is computed.
    """
    _check_output(settings)
    suite = load_suite(settings.suite)
    embedders = [open_embedder(path, settings) for path in settings.model]
    data_sets, not_run = _read_sets(settings, suite)
    measurements: list[Measurement] = []
    for data_set in data_sets:
        found = list(_measure_set(settings, data_set, embedders))
        measurements += found
        seconds = sum(measurement.seconds + measurement.embed_seconds for measurement in found)
        notice(f"{data_set.name}: {len(found)} scores in {seconds:.1f} s")
    table = write_results(settings, suite, measurements, not_run)
    try:
        from dnabert_rm.evaluate.probes.probe_plot import plot_probes

        plot_probes(settings.output / PLOT_FILE, measurements)
    except ImportError:
        notice(f"note: {PLOT_FILE} is not written: matplotlib is not installed; install dnabert_rm[plots]")
    return table


def _check_output(settings: ProbeSettings) -> None:
    writable_parent(settings.output, "--output")
    if (settings.output / JSON_FILE).exists() and not settings.overwrite:
        raise ConfigError(
            f"--output {settings.output}: has results already; choose another folder, or pass --overwrite to replace "
            "them (cached embeddings are kept)"
        )


def _read_sets(settings: ProbeSettings, suite: Suite) -> tuple[list[ProbeSet], dict[str, str]]:
    """Return the data sets in memory, and the reasons why others can't be measured. Check `--labels-per-class`."""
    found = choose_sets(find_sets(settings.data, suite), settings.sets)
    if warning := other_suite_warning(found, suite):
        notice(warning)
    not_run = {
        data_set.name: reason for data_set in found if (reason := reason_not_to_probe(data_set, settings.stand_in))
    }
    for name, reason in not_run.items():
        notice(f"warning: {name} is left out: {reason}")
    if len(not_run) == len(found):
        raise DataError(f"--data {settings.data}: no data set can be measured; add the CSV files named in the warnings")
    data_sets = [read_probe_set(data_set, suite, settings.task) for data_set in found if data_set.name not in not_run]
    for data_set in data_sets:
        for labels_per_class in settings.labels_per_class:
            for seed in settings.seeds:
                data_set.divide(labels_per_class, seed)
    return data_sets, not_run


def _measure_set(
    settings: ProbeSettings, data_set: ProbeSet, embedders: Sequence[TableEmbedder]
) -> Iterator[Measurement]:
    """Yield the scores of every model and baseline on one data set, for each number of labels per class."""
    for path, embedder in zip(settings.model, embedders, strict=True):
        embeddings = embedder.embed(data_set)
        fit = partial(_fit_probe, data_set, _layer_candidates(embeddings, embedder.layers))
        for measurement in _measure(settings, data_set, "probe", fit, seeded=False):
            measurement.model = str(path)
            measurement.embed_seconds = embeddings.seconds
            measurement.from_cache = embeddings.from_cache
            yield measurement
    if "kmers" in settings.baselines:
        start = time.monotonic()
        candidates = kmer_candidates(data_set)
        seconds = time.monotonic() - start
        for measurement in _measure(settings, data_set, "kmers", partial(_fit_kmers, data_set, candidates), False):
            measurement.embed_seconds = seconds
            yield measurement
    if "cnn" in settings.baselines:
        yield from _measure(settings, data_set, "cnn", partial(_fit_cnn, data_set, settings.cnn_epochs), seeded=True)


def _layer_candidates(embeddings: SetEmbeddings, layers: Sequence[int]) -> list[Candidate]:
    return [
        Candidate({"layer": layer, "pooling": pooling}, partial(embeddings.features, pooling, layer))
        for pooling in embeddings.by_pooling
        for layer in layers
    ]


def _fit_probe(data_set: ProbeSet, candidates: Sequence[Candidate], division: Division, seed: int) -> Fit:
    return fit_best(data_set, division, candidates, STRENGTHS if data_set.num_classes else ALPHAS, scale=True)


def _fit_kmers(data_set: ProbeSet, candidates: Sequence[Candidate], division: Division, seed: int) -> Fit:
    return fit_kmers(data_set, division, candidates)


def _fit_cnn(data_set: ProbeSet, max_epochs: int, division: Division, seed: int) -> Fit:
    return fit_cnn(data_set, division, seed, max_epochs)


def _measure(
    settings: ProbeSettings, data_set: ProbeSet, method: str, fit: FitOnce, seeded: bool
) -> Iterator[Measurement]:
    """Yield one measurement per number of labels. A method without randomness is fitted with the first seed only."""
    for labels_per_class in settings.labels_per_class:
        varies = seeded or data_set.varies_with_seed(labels_per_class)
        seeds = settings.seeds if varies else settings.seeds[:1]
        start = time.monotonic()
        divisions = [data_set.divide(labels_per_class, seed) for seed in seeds]
        fits = [fit(division, seed) for division, seed in zip(divisions, seeds, strict=True)]
        yield Measurement(
            data_set=data_set.name,
            stand_in=data_set.stand_in,
            dev_held_out=not data_set.has_dev,
            metric=data_set.metric,
            labels_per_class=labels_per_class,
            method=method,
            fits={seed: asdict(found) for seed, found in zip(seeds, fits, strict=True)},
            train_rows=len(divisions[0].train),
            dev_rows=len(divisions[0].dev),
            test_rows=len(divisions[0].test),
            shared_rows=data_set.shared_rows,
            seconds=time.monotonic() - start,
        )
