"""Reference lines of prepared data: what they are computed from, and where they are stored."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from support import random_bases, write_prepared

from dnabert_rm.data import baselines as module
from dnabert_rm.data.baselines import measure_baselines, orders_for, training_codes
from dnabert_rm.data.held_out import HeldOutRegion, HiddenStretches, find_stretches, read_regions
from dnabert_rm.data.split_reader import SplitReader
from dnabert_rm.data.storage import StorageSettings
from dnabert_rm.genome.kmer import base_codes

K = 4
HeldOut = tuple[list[SplitReader], list[HeldOutRegion], list[HiddenStretches]]


def biased_bases(rng: np.random.Generator, length: int) -> str:
    """Return a sequence in which A is seven times as frequent as each other base."""
    return "".join(rng.choice(list("AAAAAAACGT"), length))


def prepare(folder: Path, seed: int = 0) -> HeldOut:
    rng = np.random.default_rng(seed)
    shards = [[biased_bases(rng, 3000) for _ in range(4)] for _ in range(3)]
    write_prepared(folder, shards, k=K, splits={1: "val"})
    regions = read_regions([SplitReader(folder, "val")], 3, 100)
    return [SplitReader(folder, "train")], regions, [find_stretches(regions, n) for n in (1, 5)]


def test_the_lines_of_biased_bases_are_their_entropy(tmp_path: Path) -> None:
    """No line can be better than the entropy of independent bases, and with enough data all reach it."""
    lines = measure_baselines(*prepare(tmp_path / "data"), K)
    entropy = -(0.7 * math.log2(0.7) + 0.3 * math.log2(0.1))
    for line, by_n in lines.bits.items():
        for n, bits in by_n.items():
            error = bits.mean(axis=1).std() / len(bits) ** 0.5
            assert abs(bits.mean() - entropy) < 4 * error + 0.02, (line, n)
    assert lines.kmer_frequencies == pytest.approx(K * entropy * math.log(2), rel=0.05)


def test_later_calls_read_the_stored_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = prepare(tmp_path / "data")
    first = measure_baselines(*held_out, K)
    (path,) = (tmp_path / "data" / "reference_lines").iterdir()
    monkeypatch.setattr(module, "_compute", lambda *_: pytest.fail("computed again"))
    second = measure_baselines(*held_out, K)
    assert first.to_json() == second.to_json() and list(first.bits) == list(second.bits)
    assert all(np.array_equal(first.bits[line][n], second.bits[line][n]) for line in first.bits for n in (1, 5))
    monkeypatch.undo()

    path.write_bytes(path.read_bytes()[:-40])
    assert measure_baselines(*held_out, K).to_json() == first.to_json()


def test_other_data_stretches_or_k_have_other_lines(tmp_path: Path) -> None:
    readers, regions, stretches = prepare(tmp_path / "data")
    for arguments in (
        (readers, regions, stretches, K),
        (prepare(tmp_path / "other", seed=1)[0], regions, stretches, K),
        (readers, regions, stretches[:1], K),
        (readers, regions[:2], [find_stretches(regions[:2], n) for n in (1, 5)], K),
        (readers, regions, stretches, 3),
    ):
        measure_baselines(*arguments)
    stored = [path for name in ("data", "other") for path in (tmp_path / name / "reference_lines").iterdir()]
    assert len(stored) == 5


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    held_out = prepare(tmp_path / "data")
    (tmp_path / "data" / "reference_lines").write_text("a file in the way")
    assert measure_baselines(*held_out, K).bits.keys() >= {"composition", "markov_2"}


def test_training_bases_are_those_of_the_split_and_a_part_of_large_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    shards = [[random_bases(rng, 500) for _ in range(5)] for _ in range(31)]
    write_prepared(tmp_path / "data", shards, k=K, splits={1: "val"})
    reader = SplitReader(tmp_path / "data", "train")
    expected = {tuple(base_codes(sequence)) for number, shard in enumerate(shards) if number != 1 for sequence in shard}
    assert {tuple(codes) for codes in training_codes([reader])} == expected
    monkeypatch.setattr(module, "MAX_TRAINING_BASES", 20_000)
    part = [tuple(codes) for codes in training_codes([reader])]
    assert len(part) == 45 and set(part) < expected


def test_the_lines_don_t_depend_on_the_context_that_a_model_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers, _, _ = prepare(tmp_path / "data")
    found = []
    for context in (40, 3000):
        regions = read_regions([SplitReader(tmp_path / "data", "val")], 3, context)
        found.append(measure_baselines(readers, regions, [find_stretches(regions, n) for n in (1, 5)], K))
        monkeypatch.setattr(module, "_compute", lambda *_: pytest.fail("computed again"))
    assert found[0].to_json() == found[1].to_json()


def test_lines_without_damaged_shards_are_not_stored(tmp_path: Path) -> None:
    _, regions, stretches = prepare(tmp_path / "data")
    shard = tmp_path / "data" / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    reader = SplitReader(tmp_path / "data", "train", StorageSettings(on_bad_shard="skip"))
    assert measure_baselines([reader], regions, stretches, K).bits
    assert not (tmp_path / "data" / "reference_lines").exists()


def test_chosen_orders_don_t_change_the_other_chains(tmp_path: Path) -> None:
    held_out = prepare(tmp_path / "data")
    usual = measure_baselines(*held_out, K)
    chosen = measure_baselines(*held_out, K, orders=(5, 3, 3, 11))
    assert list(usual.bits) == ["composition", "markov_2", "markov_5", "markov_8"]
    assert list(chosen.bits) == ["composition", "markov_3", "markov_5"]
    for n in (1, 5):
        np.testing.assert_array_equal(usual.bits["markov_5"][n], chosen.bits["markov_5"][n])
        assert not np.array_equal(chosen.bits["markov_3"][n], chosen.bits["markov_5"][n])
    assert measure_baselines(*held_out, K).to_json() == usual.to_json()


def test_orders_need_a_base_per_four_contexts() -> None:
    assert [orders_for(n) for n in (10, 300, 20_000, 2_000_000)] == [[2], [2, 5], [2, 5, 8], [2, 5, 8, 11]]
