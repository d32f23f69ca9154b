"""Builds with BED files: every base is accounted for by the slow rule, and every split holds the same blocks."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.bpe import train_from_files
from data_prep.parallel import open_executor
from data_prep.sharding.build_shards import Job, build
from data_prep.sharding.options import BuildOptions
from data_prep.sharding.regions import Regions
from data_prep.sharding.shard_plan import Plan, make_plan
from data_prep.sharding.sources import Source
from data_prep.verify import find_faults
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.data.shards import read_metas
from dnabert_rm.genome.contigs import Contig
from dnabert_rm.genome.intervals import Intervals
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import sha256_of_file

Rows = list[tuple[str, int, int]]


def contig(text: str, name: str, genome: str = "g") -> Contig:
    gaps = [match.span() for match in re.finditer("[^ACGT]+", text)]
    anchors = np.array([[7, 0]], dtype=np.int64)
    return Contig(genome, name, 0, len(text), np.array(gaps, dtype=np.int64).reshape(-1, 2), anchors)


def intervals(rows: Rows, name: str = "a.bed") -> Intervals:
    names = list(dict.fromkeys(row[0] for row in rows))
    table = np.array([(names.index(row[0]), *row[1:]) for row in rows], dtype=np.int64).reshape(-1, 3)
    return Intervals(name, names, *table.T, line=np.arange(1, len(rows) + 1))


def reasons(text: str, options: BuildOptions, name: str, kept: list[Rows], excluded: list[Rows]) -> list[str]:
    """Return why each base of a contig is left out, or "" if it is in a segment, one base at a time."""

    def covered(files: list[Rows], i: int) -> bool:
        return any(row[0] in (name, f"g:{name}") and row[1] <= i < row[2] for rows in files for row in rows)

    if name in options.exclude:
        return ["excluded"] * len(text)
    found = []
    for i in range(len(text)):
        outside = bool(kept) and not covered(kept, i)
        found.append("excluded_region" if covered(excluded, i) else "outside_regions" if outside else "")
    k = options.unit_bases
    for match in re.finditer("k+", "".join("-" if reason else "k" for reason in found)):
        part = text[match.start() : match.end()]
        if options.unk_bases:
            short = f"(?<=[ACGT])N{{1,{options.unk_bases}}}(?=[ACGT])"
            part = re.sub(short, lambda gap: "A" * len(gap[0]), part)
        for i, letter in enumerate(part):
            found[match.start() + i] = "" if letter in "ACGT" else "ambiguous"
        for run in re.finditer("[ACGT]+", part):
            if len(run[0]) - k + 1 < max(1, options.min_tokens):
                for i in range(*run.span()):
                    found[match.start() + i] = "too_short"
    return found


TEXTS = st.lists(st.text("ACGTAACCN", max_size=60), min_size=1, max_size=3)
BED = st.lists(
    st.tuples(st.sampled_from(["c0", "c1", "g:c1", "c2"]), st.integers(0, 60), st.integers(0, 25)).map(
        lambda row: (row[0], row[1], row[1] + row[2])
    ),
    min_size=1,
    max_size=6,
)


@given(TEXTS, st.lists(BED, max_size=2), st.lists(BED, max_size=2), st.integers(0, 3), st.data())
@settings(deadline=None, max_examples=300)
def test_every_base_is_in_a_segment_or_left_out_for_the_first_reason(
    texts: list[str], kept: list[Rows], excluded: list[Rows], unk_bases: int, data: st.DataObject
) -> None:
    contigs = [contig(text, f"c{i}") for i, text in enumerate(texts)]
    names = {one.name for one in contigs} | {f"g:{one.name}" for one in contigs}
    options = BuildOptions(
        k=data.draw(st.sampled_from([3, 4])),
        min_tokens=data.draw(st.integers(1, 4)),
        segment_tokens=8,
        unk_bases=unk_bases,
        exclude=data.draw(st.sampled_from([(), ("c0",)])) if len(texts) > 1 else (),
    )
    expected = {
        one.name: reasons(text, options, one.name, kept, excluded) for one, text in zip(contigs, texts, strict=True)
    }
    try:
        plan = make_plan(contigs, options, Regions(list(map(intervals, kept)), list(map(intervals, excluded))))
    except DataError as error:
        if "nor any other contig of this file" in str(error):
            assert any(not {row[0] for row in rows} & names for rows in kept + excluded)
        else:
            assert "no segment is left" in str(error) and "" not in itertools.chain(*expected.values())
        return
    segments = plan.segments
    for number, why in enumerate(expected.values()):
        mine = segments.contig == number
        rows = list(zip(segments.start[mine].tolist(), segments.end[mine].tolist(), strict=True))
        stored = {i for start, end in rows for i in range(start, end)}
        assert stored == {i for i, reason in enumerate(why) if not reason}
        tokens = [i for start, end in rows for i in range(start, end - options.unit_bases + 1)]
        assert len(tokens) == len(set(tokens)), "no token is stored twice"
        counts = {reason: why.count(reason) for reason in set(why) - {""}}
        assert left_out(plan, number) == counts
        assert len(stored) + sum(left_out(plan, number).values()) == len(texts[number])


def left_out(plan: Plan, contig: int) -> dict[str, int]:
    """Return the numbers of bases that are left out of a contig, without zeros."""
    return {reason: int(bases[contig]) for reason, bases in plan.left_out.items() if bases[contig]}


def split_of_bases(plan: Plan) -> dict[tuple[int, int], int]:
    columns = (plan.segments.contig, plan.segments.start, plan.segments.end, plan.segments.split)
    found: dict[tuple[int, int], int] = {}
    for number, start, end, split in zip(*(column.tolist() for column in columns), strict=True):
        for i in range(start, end):
            assert found.setdefault((number, i), split) == split, "a base in two splits"
    return found


@pytest.mark.parametrize("seed", range(5))
def test_all_builds_of_a_mixture_hold_out_the_same_blocks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    contigs = [contig("A" * 4000 + "N" * 30 + "C" * 2000, f"c{i}") for i in range(3)]
    options = BuildOptions(val_fraction=0.2, test_fraction=0.1, block_bases=100, seed=seed)
    whole = split_of_bases(make_plan(contigs, options))
    bed: Rows = [(f"c{i % 3}", start, start + 70) for i, start in enumerate(rng.integers(0, 6000, 150).tolist())]
    inside = split_of_bases(make_plan(contigs, options, Regions([intervals(bed)], [])))
    outside = split_of_bases(make_plan(contigs, options, Regions([], [intervals(bed)])))
    assert inside and all(whole[base] == split for base, split in inside.items())
    assert outside and all(whole[base] == split for base, split in outside.items())
    assert set(inside.values()) == set(outside.values()) == {0, 1, 2}
    assert not set(inside) & set(outside)


def test_a_split_without_a_base_in_the_regions_is_refused_or_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    contigs = [contig("A" * 5000, "a"), contig("C" * 5000, "b")]
    regions = Regions([intervals([("a", 10, 60)])], [])
    with pytest.raises(ConfigError, match="train or val has no base in the regions"):
        make_plan(contigs, BuildOptions(val_fraction=0.1, block_bases=1000), regions)
    capsys.readouterr()
    plan = make_plan(contigs, BuildOptions(val_contigs=("b",)), regions)
    assert [shard.split for shard in plan.shards] == ["train"]
    warning = "warning: --val-contigs b: have no base in the regions, so there is no val split\n"
    assert capsys.readouterr().err == warning
    make_plan(contigs, BuildOptions(val_contigs=("b",)), Regions([], [intervals([("a", 10, 60)])]))
    assert capsys.readouterr().err == ""


def test_held_out_contigs_without_a_base_to_store_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    contigs = [contig("A" * 5000, "a"), contig("C" * 5000, "b"), contig("N" * 5000, "c")]
    for options, flags in (
        (BuildOptions(include=("a",), val_contigs=("b",)), ["--val-contigs b"]),
        (
            BuildOptions(exclude=("b",), val_contigs=("b",), test_contigs=("c",)),
            ["--val-contigs b", "--test-contigs c"],
        ),
        (BuildOptions(val_contigs=("b", "c")), []),
    ):
        capsys.readouterr()
        plan = make_plan(contigs, options)
        expected = "".join(
            f"warning: {flag}: have no base to store, so there is no {flag[2:].partition('-')[0]} split\n"
            for flag in flags
        )
        assert capsys.readouterr().err == expected
        assert ({shard.split for shard in plan.shards} == {"train"}) == bool(flags)


def test_a_name_without_a_genome_is_on_every_genome_that_has_it() -> None:
    contigs = [contig("A" * 50, "c", "fly"), contig("A" * 50, "c", "man"), contig("A" * 50, "d", "man")]

    def stored(*rows: tuple[str, int, int]) -> list[tuple[int, int, int]]:
        segments = make_plan(contigs, BuildOptions(), Regions([intervals(list(rows))], [])).segments
        return [tuple(row) for row in np.stack([segments.contig, segments.start, segments.end], axis=1).tolist()]

    assert stored(("c", 0, 9)) == [(0, 0, 9), (1, 0, 9)]
    assert stored(("man:c", 5, 25), ("d", 1, 11)) == [(1, 5, 25), (2, 1, 11)]
    assert stored(("man:c", 0, 9), ("c", 9, 20), ("fly:c", 15, 30)) == [(0, 9, 30), (1, 0, 20)]


def test_names_and_ends_that_no_contig_has(capsys: pytest.CaptureFixture[str]) -> None:
    contigs = [contig("A" * 50, "chrI"), contig("A" * 30, "chrII")]
    rows: Rows = [("chrI", 40, 60), ("chrX", 0, 9), ("chrII", 70, 90), ("chrII", 0, 30), ("chrX", 1, 2)]
    plan = make_plan(contigs, BuildOptions(), Regions([intervals(rows)], []))
    assert {reason: bases.tolist() for reason, bases in plan.left_out.items()} == {"outside_regions": [40, 0]}
    unknown, cut = capsys.readouterr().err.splitlines()
    assert unknown.startswith(
        "warning: a.bed: 2 of 5 intervals are on contigs that no genome has (first: line 2, 'chrX'"
    )
    assert "'chrX'; did you mean 'chrI'?" in unknown
    expected = "2 intervals are cut at their contig's end (first: line 1, but g:chrI has 50 bases)"
    assert cut == f"warning: a.bed: {expected}"
    for regions in (Regions([intervals([("1", 0, 9), ("2", 0, 9)])], []), Regions([], [intervals([("1", 0, 9)])])):
        with pytest.raises(DataError, match="line 1: no genome has a contig '1', nor any other"):
            make_plan(contigs, BuildOptions(), regions)


def test_a_short_gap_is_kept_only_with_bases_of_the_same_interval_on_both_sides() -> None:
    contigs = [contig("AAAAANNAAAAA", "c")]

    def stored(*rows: tuple[str, int, int]) -> tuple[list[list[int]], dict[str, int]]:
        options = BuildOptions(k=3, unk_bases=5)
        plan = make_plan(contigs, options, Regions([intervals(list(rows))], []))
        return np.stack([plan.segments.start, plan.segments.end], axis=1).tolist(), left_out(plan, 0)

    assert stored(("c", 0, 12)) == stored(("c", 0, 6), ("c", 6, 12)) == ([[0, 12]], {})
    assert stored(("c", 5, 12)) == ([[7, 12]], {"outside_regions": 5, "ambiguous": 2})
    assert stored(("c", 0, 6)) == ([[0, 5]], {"outside_regions": 6, "ambiguous": 1})
    assert stored(("c", 4, 8)) == ([[4, 8]], {"outside_regions": 8})


def test_regions_that_leave_nothing_are_refused() -> None:
    contigs = [contig("A" * 50 + "N" * 50, "c")]
    for regions in (
        Regions([intervals([("c", 60, 90)])], []),
        Regions([intervals([("c", 3, 8)])], []),
        Regions([intervals([("c", 0, 50)])], [intervals([("c", 0, 50)])]),
    ):
        with pytest.raises(DataError, match="in the regions is long enough; lower --min-tokens, or widen the interv"):
            make_plan(contigs, BuildOptions(), regions)


def test_planning_many_intervals_takes_time_that_grows_with_their_number() -> None:
    rng = np.random.default_rng(0)
    contigs = [contig("", f"contig_{i}") for i in range(10_000)]
    contigs = [Contig("g", one.name, 0, 100_000, one.gaps, one.anchors) for one in contigs]
    number, start = rng.integers(0, 10_000, 200_000), rng.integers(0, 99_000, 200_000)
    names = [one.name for one in contigs]
    bed = Intervals("a.bed", names, number, start, start + 500, np.arange(200_000))
    before = time.process_time()
    plan = make_plan(
        contigs, BuildOptions(val_fraction=0.1), Regions([bed], [bed, intervals([("contig_1", 1, 2)])][1:])
    )
    assert time.process_time() - before < 8, "one by one, 2e9 comparisons take minutes"
    assert 100_000 < len(plan.segments) <= 220_000


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    letters = np.array(list("ACGTacgt"))
    text = "".join(rng.choice(letters, 30_000))
    path = tmp_path_factory.mktemp("regions") / "g.fa"
    parts = text[:9000] + "NN" + text[9000:15_000] + "N" * 40 + text[15_000:20_000]
    path.write_text(f">a\n{parts}\n>b\n{text[20_000:]}\n>c\n{text[:50].replace('T', 'U').replace('t', 'u')}\n")
    rows = [(name, s, s + 300) for name in "ab" for s in rng.integers(0, 10_000, 12).tolist()]
    rows += [("a", 8990, 9012), ("a", 9001, 9001), ("c", 0, 50)]
    path.with_name("keep.bed").write_text("".join(f"{n}\t{s}\t{e}\n" for n, s, e in rows))
    path.with_name("drop.bed").write_text("track x\na 100 200\nb 0 3000\nb 9000 99999\n")
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_tokens": 20, "segment_tokens": 50},
        {"unk_bases": 5},
        {"rna": True},
        {"val_contigs": ("b",), "record_soft_mask": True},
        {"val_fraction": 0.2, "block_bases": 500},
        {"exclude": ("b",), "k": 3},
        {"k": None},
        {"k": None, "strand": "both", "val_fraction": 0.2, "block_bases": 500},
    ],
    ids=str,
)
@pytest.mark.parametrize("beds", ["keep", "drop", "keep drop"])
def test_a_complete_build_verifies_and_adds_up(genome: Path, tmp_path: Path, options: dict, beds: str) -> None:
    paths = {name: [str(genome.with_name(f"{name}.bed"))] if name in beds.split() else [] for name in ("keep", "drop")}
    source = Source("g", str(genome))
    with open_executor(1) as executor:
        assert executor is not None
        model = None
        if "k" in options and options["k"] is None:
            model = genome.with_name("m.model")
            if not model.exists():
                train_from_files([source], model, 64, 20_000, 0, False, executor)
            options = options | {"bpe_sha256": sha256_of_file(model)}
        job = Job(
            [source],
            BuildOptions(**options),
            tmp_path / "out",
            str(model) if model else None,
            paths["keep"],
            paths["drop"],
        )
        content = build(job, executor)
        assert list(find_faults(load_manifest(tmp_path / "out"), tmp_path / "out", executor)) == []
    manifest = load_manifest(tmp_path / "out")
    stored = sum(split["bases"] for split in content["splits"].values())
    assert content["bases"] == 30_092 == stored + sum(content["left_out"].values())
    assert ("outside_regions" in content["left_out"]) == ("keep" in beds)
    assert ("excluded_region" in content["left_out"]) == ("drop" in beds)
    if "drop" in beds:
        metas = [meta for shard in manifest.shards for meta in read_metas(tmp_path / "out" / shard.name)]
        inside = [meta for meta in metas if meta["contig"] == "b"]
        assert all(meta["start"] >= 3000 and meta["end"] <= 9000 for meta in inside)
