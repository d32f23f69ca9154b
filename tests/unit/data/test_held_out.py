"""Held-out regions and hidden stretches: which bases a model is scored on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builds import build
from support import random_bases
from tiny_models import write_fasta

from dnabert_rm.data.held_out import (
    REGION_BASES,
    HeldOutRegion,
    find_stretches,
    read_regions,
    stretch_starts,
)
from dnabert_rm.data.split_reader import SplitReader
from dnabert_rm.genome.kmer import base_codes


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A FASTA with lower-case runs and N, built at k = 3 and 6; contigs `a` and `b` are held out."""
    folder, rng = tmp_path_factory.mktemp("genome"), np.random.default_rng(0)
    contigs = {}
    for name, length in (("a", 30_000), ("b", 9000), ("tiny", 100), ("c", 4000)):
        letters = np.array(list(random_bases(rng, length)))
        for start in rng.integers(0, length, 5):
            letters[start : start + 60] = np.char.lower(letters[start : start + 60])
        contigs[name] = "".join(letters)
    contigs["a"] = contigs["a"][:12_000] + "N" * 7 + contigs["a"][12_007:]
    fasta = write_fasta(folder / "genome.fa", contigs)
    for k in (3, 6):
        build(fasta, "--out", folder / f"k{k}", "--k", k, "--val-contigs", "a", "b", "tiny", "--record-soft-mask",
              "--segment-tokens", 8000, "--ambiguous", "unk")  # fmt: skip
    return folder, contigs


def regions_of(folder: Path, k: int = 6, count: int = 1000, context: int = 100) -> list[HeldOutRegion]:
    return read_regions([SplitReader(folder / f"k{k}", "val")], count, context)


def test_all_regions_are_the_held_out_segments_letter_by_letter(genome) -> None:
    folder, contigs = genome
    regions = regions_of(folder)
    scored = 0
    for region in regions:
        letters = contigs[region.contig][region.start : region.start + len(region.codes)]
        assert np.array_equal(region.codes, base_codes(letters))
        assert np.array_equal(region.soft_masked, [letter.islower() for letter in letters])
        assert 0 <= region.first < region.last <= len(region.codes) and region.last - region.first <= REGION_BASES
        scored += region.last - region.first
    # Neighbouring segments share k - 1 bases, and the contig of 100 bases is too short.
    assert 39_000 <= scored <= 39_000 + 5 * len(regions)
    assert {region.contig for region in regions} == {"a", "b"}


def test_a_choice_of_regions_is_a_fixed_part_of_all(genome) -> None:
    folder, _ = genome
    places = [(region.contig, region.start + region.first) for region in regions_of(folder)]
    chosen = [(region.contig, region.start + region.first) for region in regions_of(folder, count=5)]
    assert len(chosen) == 5 and set(chosen) < set(places)
    assert chosen == [(region.contig, region.start + region.first) for region in regions_of(folder, count=5)]


@pytest.mark.parametrize("num_hidden", [1, 3, 5, 9])
def test_stretches_don_t_depend_on_context_and_keep_their_distance(genome, num_hidden: int) -> None:
    folder, contigs = genome
    narrow, wide = regions_of(folder, context=40), regions_of(folder, context=2000)
    for first, second in zip(narrow, wide, strict=True):
        starts = stretch_starts(first, num_hidden)
        assert np.array_equal(starts + first.start, stretch_starts(second, num_hidden) + second.start)
        assert (np.diff(starts) >= 17 + 8 * num_hidden).all()
        assert (starts >= first.first).all() and (starts < first.last).all()
        for start in starts + first.start:
            assert "N" not in contigs[first.contig][start : start + num_hidden]
        assert len(starts) > 0.9 * (first.last - first.first) / (24 + 8 * num_hidden) - 2


def test_the_reverse_strand_has_the_complementary_bases_hidden(genome) -> None:
    folder, _ = genome
    for region in regions_of(folder)[:3]:
        reverse = region.reverse_complement()
        stretches, mirrored = find_stretches([region], 5), find_stretches([region], 5).reversed([region])
        for start, other in zip(stretches.start, mirrored.start, strict=True):
            assert np.array_equal(region.codes[start : start + 5], (reverse.codes[other : other + 5] ^ 1)[::-1])
        assert np.array_equal(reverse.soft_masked, region.soft_masked[::-1])


def test_segments_that_are_too_short_give_no_region(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "short.fa", {"a": "ACGTT" * 20, "b": "ACGTA" * 2000})
    build(fasta, "--out", tmp_path / "k6", "--val-contigs", "a")
    assert regions_of(tmp_path) == []
