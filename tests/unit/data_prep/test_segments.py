"""Runs, segments, splits and shards, checked base by base and token by token."""

from __future__ import annotations

import itertools
import re
import time
from fnmatch import fnmatchcase

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sharding.options import BuildOptions
from data_prep.sharding.segments import ContigAxis, cut_at, cut_runs, long_enough
from data_prep.sharding.shard_plan import bases_of_splits, make_plan
from data_prep.sharding.splits import TEST, TRAIN, VAL, matching, split_by_blocks, split_of_contigs
from dnabert_rm.genome.contigs import Contig
from dnabert_rm.utils.errors import ConfigError, DataError

LETTERS = st.text("AAAAN", max_size=60)


def gaps_of(text: str) -> np.ndarray:
    """Find runs of N, one letter at a time."""
    edges = [i for i in range(len(text) + 1) if (text[i - 1 : i] == "N") != (text[i : i + 1] == "N")]
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


def contig(length: int, name: str = "c", gaps: tuple = (), genome: str = "g") -> Contig:
    anchors = np.array([[7, 0]], dtype=np.int64)
    return Contig(genome, name, 0, length, np.array(gaps, dtype=np.int64).reshape(-1, 2), anchors)


@given(st.lists(st.tuples(LETTERS, st.booleans()), min_size=1, max_size=4), st.integers(0, 4))
def test_runs_are_the_bases_between_gaps_of_the_included_contigs(texts: list[tuple[str, bool]], unk_bases: int) -> None:
    axis = ContigAxis.from_lengths([len(text) for text, _ in texts])
    included = np.array([include for _, include in texts])
    runs = axis.runs([gaps_of(text) for text, _ in texts], axis.ranges_of(included), unk_bases)
    inside = {(int(axis.contig_of(np.array(i))), i) for start, end in runs.tolist() for i in range(start, end)}
    expected, position = set(), 0
    for number, (text, include) in enumerate(texts):
        # Short gaps between bases become bases.
        text = re.sub(f"(?<=A)N{{1,{unk_bases}}}(?=A)", lambda gap: "A" * len(gap[0]), text) if unk_bases else text
        expected |= {(number, position + i) for i, letter in enumerate(text) if letter == "A" and include}
        position += len(text) + 1
    assert inside == expected
    assert all(end > start for start, end in runs.tolist())
    assert all(axis.contig_of(np.array(start)) == axis.contig_of(np.array(end - 1)) for start, end in runs.tolist())


@given(st.lists(st.integers(1, 200), max_size=6), st.integers(1, 8), st.integers(1, 50))
def test_segments_hold_every_token_of_every_run_once(lengths: list[int], k: int, segment_tokens: int) -> None:
    starts = np.cumsum([0, *(length + 3 for length in lengths)])[:-1]
    rows = [[start, start + length] for start, length in zip(starts, lengths, strict=True)]
    runs = np.array(rows, dtype=np.int64).reshape(-1, 2)
    runs = runs[long_enough(runs, k, 1)]
    pieces = cut_runs(runs, k, segment_tokens).tolist()
    tokens = [i for start, end in pieces for i in range(start, end - k + 1)]
    assert tokens == [i for start, end in runs.tolist() for i in range(start, end - k + 1)]
    sizes = [end - start - k + 1 for start, end in pieces]
    assert all(1 <= size <= segment_tokens for size in sizes)
    for start, end in runs.tolist():
        mine = [e - s for s, e in pieces if start <= s < end]
        assert max(mine) - min(mine) <= 1, "segments of one run are nearly equal"


@pytest.mark.parametrize(("length", "expected"), [(15, [10]), (16, [5, 6]), (25, [10, 10]), (26, [7, 7, 7])])
def test_a_run_at_the_limit_is_one_segment_and_a_longer_one_is_cut(length: int, expected: list[int]) -> None:
    sizes = [end - start - 5 for start, end in cut_runs(np.array([[0, length]]), 6, 10).tolist()]
    assert sorted(sizes) == sorted(expected)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=5), st.lists(st.integers(0, 150), unique=True)
)
def test_cutting_runs_loses_no_base(steps: list[tuple[int, int]], cuts: list[int]) -> None:
    rows, position = [], 0
    for gap, size in steps:
        rows.append([position + gap + 1, position + gap + 1 + size])
        position += gap + 1 + size
    runs = np.array(rows, dtype=np.int64).reshape(-1, 2)
    cut = cut_at(runs, np.array(sorted(cuts), dtype=np.int64)).tolist()
    assert [i for start, end in cut for i in range(start, end)] == [i for s, e in rows for i in range(s, e)]
    borders = {start for start, _ in rows}
    assert {start for start, _ in cut} - borders == {c for c in cuts if any(s < c < e for s, e in rows)}


def split_contigs(lengths: list[int], options: BuildOptions, gaps: list | None = None) -> tuple[ContigAxis, list, list]:
    axis = ContigAxis.from_lengths(lengths)
    empty = [np.empty((0, 2), np.int64) for _ in lengths]
    runs = axis.runs(gaps or empty, axis.ranges_of(np.ones(len(lengths), dtype=bool)), 0)
    cut, split = split_by_blocks(runs, axis, options)
    return axis, cut.tolist(), split.tolist()


@given(st.lists(st.integers(20, 3000), min_size=1, max_size=5), st.integers(0, 5), st.sampled_from([0.1, 0.3]))
def test_blocks_put_every_base_in_one_split_and_reach_the_fractions(lengths: list[int], seed: int, part: float) -> None:
    options = BuildOptions(val_fraction=part, test_fraction=0.1, block_bases=100, seed=seed, min_tokens=10)
    num_blocks = sum(max(1, round(length / 100)) for length in lengths)
    try:
        axis, cut, split = split_contigs(lengths, options)
    except ConfigError as error:
        assert "blocks" in str(error) and num_blocks < 6
        return
    coordinates = [i for start, end in cut for i in range(start, end)]
    assert coordinates == [start + i for start, length in zip(axis.starts, lengths, strict=True) for i in range(length)]
    assert set(split) == {TRAIN, VAL, TEST}
    if num_blocks >= 20:
        for number, wanted in ((VAL, part), (TEST, 0.1)):
            bases = sum(end - start for (start, end), which in zip(cut, split, strict=True) if which == number)
            # Off by at most half a block, the largest of which has 150 bases.
            assert abs(bases - wanted * sum(lengths)) <= 75


def test_small_scaffolds_do_not_count_as_whole_blocks() -> None:
    options = BuildOptions(val_fraction=0.1, block_bases=1000, seed=1)
    _, cut, split = split_contigs([500_000] + [100] * 500, options)
    val = sum(end - start for (start, end), which in zip(cut, split, strict=True) if which == VAL)
    assert val == pytest.approx(55_000, abs=500)


def test_adjacent_blocks_of_one_split_are_not_cut_apart() -> None:
    _, cut, split = split_contigs([1000], BuildOptions(val_fraction=0.2, block_bases=10))
    assert all(one != other for one, other in itertools.pairwise(split))
    assert VAL in split and len(cut) < 100


def test_blocks_without_sequence_are_never_validation_data() -> None:
    for seed in range(20):
        options = BuildOptions(val_fraction=0.25, block_bases=100, seed=seed)
        _, _, split = split_contigs([10_000], options, [np.array([[400, 10_000]])])
        assert split.count(VAL) == 1


@pytest.mark.parametrize(("lengths", "said"), [([1500, 1500], True), ([15_000, 15_000], False)])
def test_warns_if_blocks_miss_the_fraction_by_far(lengths: list[int], said: bool, capsys) -> None:
    split_contigs(lengths, BuildOptions(val_fraction=0.05, block_bases=1000))
    warning = "warning: --val-fraction 0.05: with whole blocks of 1,000 bases the fraction is 0.25; lower --block-bases"
    assert capsys.readouterr().err == (f"{warning}\n" if said else "")


@pytest.mark.parametrize(
    ("length", "fractions"), [(100, (0.5, 0)), (200, (0.9, 0)), (200, (0.1, 0.1)), (90, (0.01, 0))]
)
def test_too_few_blocks_for_the_fractions_are_refused(length: int, fractions: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="blocks of 100 bases contain sequence, too few to split"):
        split_contigs([length], BuildOptions(val_fraction=fractions[0], test_fraction=fractions[1], block_bases=100))


def test_contigs_are_chosen_by_name_genome_and_pattern() -> None:
    contigs = [contig(9, "chr1", genome="fly"), contig(9, "chr1", genome="man"), contig(9, "chr[X]", genome="man")]

    def chosen(*patterns: str) -> list[int]:
        return np.flatnonzero(matching(contigs, patterns, "--include")).tolist()

    assert chosen("chr1") == [0, 1]
    assert chosen("man:chr1") == [1]
    assert chosen("man:*") == [1, 2]
    assert chosen("chr[X]") == [2], "a name wins over a pattern"
    assert chosen("chr?", "chr[[]X[]]") == [0, 1, 2]
    with pytest.raises(ConfigError, match="--include chr2: no contig has this name; did you mean 'chr1'"):
        chosen("chr2")


@given(st.lists(st.text("ab1[]*?:", min_size=1, max_size=4), min_size=1, max_size=12, unique=True), st.data())
@settings(deadline=None)
def test_any_names_and_patterns_match_as_the_slow_rule_has_it(names: list[str], data: st.DataObject) -> None:
    contigs = [contig(9, name, genome=f"g{i % 2}") for i, name in enumerate(names)]
    both = [(c.name, f"{c.genome}:{c.name}") for c in contigs]
    any_name = st.sampled_from([name for pair in both for name in pair])
    patterns = data.draw(st.lists(st.one_of(any_name, st.text("ab1[]*?:g0", min_size=1, max_size=5)), max_size=6))
    expected = np.zeros(len(contigs), dtype=bool)
    for pattern in patterns:
        hits = [pattern in pair for pair in both]
        hits = hits if any(hits) else [any(fnmatchcase(name, pattern) for name in pair) for pair in both]
        if not any(hits):
            with pytest.raises(ConfigError, match="no contig has this name"):
                matching(contigs, patterns, "--include")
            return
        expected |= np.array(hits)
    assert matching(contigs, patterns, "--include").tolist() == expected.tolist()


def test_names_are_looked_up_in_time_that_grows_with_their_sum() -> None:
    contigs = [contig(9, f"contig_{i}") for i in range(40_000)]
    names = [f"contig_{i}" for i in range(20_000)]
    start = time.process_time()
    assert matching(contigs, names, "--include").sum() == 20_000
    assert matching(contigs, [f"contig_{i}?" for i in range(1000, 4000)], "--include").sum() == 30_000
    assert time.process_time() - start < 3, "one by one, 8e8 comparisons take minutes"


def test_a_contig_in_two_splits_is_refused() -> None:
    contigs = [contig(100, "a"), contig(100, "b")]
    assert split_of_contigs(contigs, BuildOptions(val_contigs=("b",))).tolist() == [TRAIN, VAL]
    with pytest.raises(ConfigError, match="'b' is in both"):
        split_of_contigs(contigs, BuildOptions(val_contigs=("b",), test_contigs=("*",)))


def test_bases_left_out_are_counted_by_reason() -> None:
    contigs = [contig(100, "a", ((0, 10), (14, 20))), contig(50, "b")]
    plan = make_plan(contigs, BuildOptions(exclude=("b",)))
    found = {reason: bases.tolist() for reason, bases in plan.left_out.items()}
    assert found == {"excluded": [0, 50], "ambiguous": [16, 0], "too_short": [4, 0]}
    assert bases_of_splits(plan.segments) == {"train": 80}


def test_shards_are_nearly_full_and_never_above_the_limit() -> None:
    contigs = [contig(length) for length in (1005, 2005, 505, 4005, 905)]
    options = BuildOptions(segment_tokens=300, shard_tokens=1000)
    plan = make_plan(contigs, options)
    sizes = [int((shard.segments.end - shard.segments.start - 5).sum()) for shard in plan.shards]
    assert sum(sizes) == 8400 and max(sizes) <= 1000 and len(sizes) <= 11
    assert [shard.name for shard in plan.shards] == [f"shard-{i:06d}.tar" for i in range(len(sizes))]
    firsts = np.cumsum([0, *(len(shard.segments) for shard in plan.shards)])[:-1]
    assert [shard.first_key for shard in plan.shards] == firsts.tolist()


def test_an_input_with_nothing_to_store_is_refused() -> None:
    with pytest.raises(DataError, match="no segment is left"):
        make_plan([contig(100, gaps=((0, 100),))], BuildOptions())
    with pytest.raises(ConfigError, match="no contig is left"):
        make_plan([contig(100)], BuildOptions(exclude=("c",)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 9}, "--k 9"),
        ({"segment_tokens": 0}, "--segment-tokens 0: must be at least 1"),
        ({"segment_tokens": 10, "min_tokens": 6}, "--min-tokens 6: must be at most half"),
        ({"shard_tokens": 10}, "--shard-tokens 10: must be at least --segment-tokens"),
        ({"val_fraction": 1.0}, "--val-fraction 1"),
        ({"val_fraction": float("nan")}, "--val-fraction nan"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "--test-fraction 0.5"),
        ({"val_fraction": 0.5, "val_contigs": ("a",)}, "can't be combined"),
        ({"strand": "both"}, "--strand both: applies to BPE"),
        ({"k": None, "unk_bases": 3}, "--ambiguous unk: applies to k-mers"),
        ({"unk_bases": -1}, "--unk-bases -1"),
    ],
)
def test_contradictory_options_are_refused(options: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BuildOptions(**options)
    assert str(caught.value).startswith(said) or said in str(caught.value)
