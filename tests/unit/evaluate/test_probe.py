"""Probes choose on dev only, k-mer counts equal slow ones, few labels are drawn as said, and the CNN learns a motif."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import random_bases

from dnabert_rm.evaluate.data_sets import find_sets
from dnabert_rm.evaluate.probes.probe_cnn import fit_cnn
from dnabert_rm.evaluate.probes.probe_data import Division, ProbeSet, read_probe_set
from dnabert_rm.evaluate.probes.probe_fit import STRENGTHS, Candidate, fit_best
from dnabert_rm.evaluate.probes.probe_kmers import count_kmers, fit_kmers, kmer_candidates
from dnabert_rm.evaluate.probes.probe_settings import ProbeSettings
from dnabert_rm.evaluate.suite import load_suite
from dnabert_rm.genome import kmer
from dnabert_rm.utils.errors import ConfigError, DataError

MOTIF = "TATAAAGC"
GUE = load_suite("gue")


def make_set(folder: Path, dev: bool = True, classes: int = 2, rows: int = 120, label: str = "class") -> ProbeSet:
    """Write and read a data set: class 1 has a motif somewhere; other classes are random."""
    rng = np.random.default_rng(3)
    counts = {"train": rows, "dev": 60, "test": 60}
    for split, count in counts.items():
        if split == "dev" and not dev:
            continue
        lines = ["sequence,label"]
        for row in range(count):
            bases = random_bases(rng, 50)
            if row % classes == 1:
                start = rng.integers(len(bases) - len(MOTIF))
                bases = bases[:start] + MOTIF + bases[start + len(MOTIF) :]
            lines.append(f"{bases},{row % classes if label == 'class' else bases.count('A') / 5}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return read_probe_set(find_sets(folder, GUE)[0], GUE, "classes" if label == "class" else "regression")


def layers(data: ProbeSet, informative: int, separation: float = 6.0) -> list[Candidate]:
    """Return made-up embeddings of four layers, of which one depends on the target."""
    rng = np.random.default_rng(0)
    found = []
    for layer in range(4):
        values = rng.normal(size=(len(data.targets), 5))
        if layer == informative:
            values[:, 0] += separation * data.targets
        found.append(Candidate({"layer": layer}, lambda values=values: values))
    return found


def test_probe_finds_the_informative_layer(tmp_path: Path) -> None:
    data = make_set(tmp_path)
    fit = fit_best(data, data.divide(0, 1), layers(data, 2, separation=20), STRENGTHS, scale=True)
    assert fit.choice["layer"] == 2 and fit.dev == fit.test == 1.0
    assert [candidate["layer"] for candidate in fit.by_candidate] == [0, 1, 2, 3]
    assert all(candidate["dev"] < 0.5 for candidate in fit.by_candidate if candidate["layer"] != 2)


def test_ridge_probe_finds_the_informative_layer(tmp_path: Path) -> None:
    data = make_set(tmp_path, label="number")
    fit = fit_best(data, data.divide(0, 1), layers(data, 1), (100.0, 1.0, 0.01), scale=True)
    assert fit.choice["layer"] == 1 and data.metric == "r2" and fit.test > 0.9


def test_choices_do_not_depend_on_test_labels(tmp_path: Path) -> None:
    data = make_set(tmp_path)
    division = data.divide(0, 1)
    targets = data.targets.copy()
    targets[division.test] = 1 - targets[division.test]
    flipped = replace(data, targets=targets)
    noisy = layers(data, 3, separation=1.0)
    fit, other = (fit_best(each, division, noisy, STRENGTHS, scale=True) for each in (data, flipped))
    assert (fit.choice, fit.dev, fit.by_candidate) == (other.choice, other.dev, other.by_candidate)
    assert fit.test == pytest.approx(-other.test) and fit.test > 0.1


def test_strength_is_the_best_on_dev(tmp_path: Path) -> None:
    data = make_set(tmp_path)
    division, features = data.divide(0, 1), layers(data, 3, separation=1.0)[3:]
    by_strength = {c: fit_best(data, division, features, (c,), scale=True).dev for c in STRENGTHS}
    fit = fit_best(data, division, features, STRENGTHS, scale=True)
    assert len(set(by_strength.values())) > 1  # otherwise the choice would not matter
    assert fit.dev == max(by_strength.values())
    assert fit.choice["C"] == min(c for c, score in by_strength.items() if score == fit.dev)


def test_kmer_counts_equal_slow_counts() -> None:
    rng = np.random.default_rng(1)
    sequences = [random_bases(rng, n) for n in (40, 7, 2)] + ["ACGNNACGTAcgt"]
    names = kmer.vocabulary(3)[kmer.NUM_SPECIAL :]
    slow = [[sum(s.upper()[i : i + 3] == name for i in range(len(s))) for name in names] for s in sequences]
    assert count_kmers(sequences, 3).toarray().tolist() == slow


def test_kmer_baseline_finds_a_motif_and_chooses_k(tmp_path: Path) -> None:
    data = make_set(tmp_path, rows=400)
    fit = fit_kmers(data, data.divide(0, 1), kmer_candidates(data))
    assert fit.choice["k"] >= 4 and fit.test > 0.6
    assert fit.dev == max(candidate["dev"] for candidate in fit.by_candidate)


def test_few_labels_are_drawn_per_class_and_by_seed(tmp_path: Path) -> None:
    data = make_set(tmp_path, classes=3)
    whole = data.divide(0, 1)
    divisions = [data.divide(10, seed) for seed in (1, 1, 2)]
    for division in divisions:
        assert np.bincount(data.targets[division.train]).tolist() == [10, 10, 10]
        assert set(division.train) < set(whole.train)
        assert np.array_equal(division.dev, whole.dev) and np.array_equal(division.test, whole.test)
    assert np.array_equal(divisions[0].train, divisions[1].train)
    assert not np.array_equal(divisions[0].train, divisions[2].train)
    assert data.divide(40, 1).train.tolist() == whole.train.tolist()
    with pytest.raises(DataError, match="only 40 training rows; pass 40 or less"):
        data.divide(41, 1)


def test_rows_are_held_out_without_dev(tmp_path: Path) -> None:
    data = make_set(tmp_path, dev=False)
    division = data.divide(0, 1)
    assert not data.has_dev and len(division.dev) == 12
    assert sorted([*division.train, *division.dev]) == list(range(120))
    assert division.test.tolist() == list(range(120, 180))
    assert not np.array_equal(division.dev, data.divide(0, 2).dev)


def test_cnn_learns_a_motif_and_is_deterministic(tmp_path: Path) -> None:
    data = make_set(tmp_path, rows=600)
    division = data.divide(0, 1)
    fit, same, other = (fit_cnn(data, division, seed, 12) for seed in (1, 1, 2))
    assert fit.test > 0.8
    assert fit == same
    assert fit.by_candidate != other.by_candidate


def test_cnn_predicts_numbers_in_table_units(tmp_path: Path) -> None:
    data = make_set(tmp_path, rows=600, label="number")
    shifted = replace(data, targets=100 + 10 * data.targets)
    fits = [fit_cnn(each, each.divide(0, 1), 1, 4) for each in (data, shifted)]
    assert fits[0].test == pytest.approx(fits[1].test, abs=0.01) and fits[0].dev > 0.2


def test_division_of_one_class_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("sequence,label\nACGTACGT,0\nACGTTCGT,1\n")
    (tmp_path / "test.csv").write_text("sequence,label\nACGTACGT,0\n")
    data = read_probe_set(find_sets(tmp_path, GUE)[0], GUE)
    with pytest.raises(DataError, match="too few rows to hold out"):
        data.divide(0, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": (1, 1)}, "--seeds 1,1: pass at least one value, and no value twice"),
        ({"labels_per_class": (5,), "task": "regression"}, "--labels-per-class: needs classes"),
        ({"baselines": ("trees",)}, "--baselines trees: must be one of kmers, cnn"),
    ],
)
def test_bad_settings(changed: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProbeSettings(**({"model": (Path("m"),), "data": Path("d"), "output": Path("o")} | changed))


def test_division_has_disjoint_rows(tmp_path: Path) -> None:
    division: Division = make_set(tmp_path).divide(0, 1)
    rows = np.concatenate([division.train, division.dev, division.test])
    assert rows.tolist() == list(range(240))
