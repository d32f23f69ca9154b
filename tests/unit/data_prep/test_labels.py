"""Labelled windows against a slow computation, one interval and one base at a time."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from labelled_windows import Bed, Row, random_dna, rows_of, run, slow_sequence, write_bed, write_genome, write_peaks
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching


@pytest.fixture
def peaks(tmp_path: Path) -> list[Bed]:
    """A genome of three contigs, and 120 peaks in peaks.bed."""
    return write_peaks(tmp_path)


def slow_window(bed: Bed, anchor: str, window: int, upstream: int) -> tuple[int, int]:
    """Return start and end of an interval's window, from a list of the interval's bases in reading direction."""
    _, start, end, strand = bed
    bases = list(range(start, end)) if strand != "-" else list(range(end - 1, start - 1, -1))
    base = {"start": bases[0], "end": bases[-1], "centre": bases[len(bases) // 2]}[anchor]
    step = -1 if strand == "-" else 1
    positions = [base + step * (offset - upstream) for offset in range(window)]
    return min(positions), max(positions) + 1


def slow_rows(contigs: dict[str, str], beds: list[Bed], anchor: str, window: int, upstream: int) -> set[tuple]:
    """Return (contig, start, end, strand, sequence) of every window that can be used."""
    rows = set()
    for bed in beds:
        start, end = slow_window(bed, anchor, window, upstream)
        text = contigs[bed[0]]
        if start < 0 or end > len(text) or "N" in text[start:end].upper():
            continue
        strand = "-" if bed[3] == "-" else "+"
        rows.add((bed[0], start, end, strand, slow_sequence(text, start, end, strand)))
    return rows


def as_tuple(row: Row) -> tuple:
    return row["contig"], int(row["start"]), int(row["end"]), row["strand"], row["sequence"]


beds = st.lists(
    st.tuples(st.sampled_from(["one", "two"]), st.integers(0, 150), st.integers(1, 60), st.sampled_from("+-.")),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(beds, st.sampled_from(["start", "end", "centre"]), st.integers(1, 40), st.data())
def test_windows_are_those_of_a_slow_computation(
    tmp_path: Path, found: list[tuple[str, int, int, str]], anchor: str, window: int, data: st.DataObject
) -> None:
    contigs = {"one": random_dna(1, 90) + "NN" + random_dna(2, 60), "two": random_dna(3, 180)}
    write_genome(tmp_path / "genome.fa", contigs)
    rows = [(name, start, start + size, strand) for name, start, size, strand in found]
    upstream = data.draw(st.integers(0, window - 1))
    expected = slow_rows(contigs, rows, anchor, window, upstream)
    bed = write_bed(tmp_path / "a.bed", rows)
    flags: dict[str, Any] = {"anchor": anchor, "window": window, "upstream": upstream, "label": "name"}
    # Two names, so that there are two classes.
    other = tmp_path / "b.bed"
    other.write_text(f"two\t{90 - window}\t90\ty\n")
    expected_other = slow_window(("two", 90 - window, 90, "."), anchor, window, upstream)
    assume(expected and expected_other[0] >= 0 and expected_other[1] <= 180)
    assume(not any(row[:4] == ("two", *expected_other, "+") for row in expected))
    report, tables = run(tmp_path, bed, other, val_fraction=0.0, test_fraction=0.0, **flags)
    assert {as_tuple(row) for row in rows_of(tables) if row["label"] == "x"} == expected
    assert report["rows"]["train"] + sum(report["dropped"].values()) == len(rows) + 1


def test_a_mirrored_genome_gives_the_same_sequences(tmp_path: Path) -> None:
    text = random_dna(5, 4000)
    mirrored = slow_sequence(text, 0, len(text), "-")
    rng = np.random.default_rng(6)
    sizes = zip(rng.integers(100, 3600, 50).tolist(), rng.integers(1, 200, 50).tolist(), strict=True)
    rows = [("c", start, start + size, "+-"[i % 2]) for i, (start, size) in enumerate(sizes)]
    turned = [("c", len(text) - end, len(text) - start, "+-"[strand == "+"]) for _, start, end, strand in rows]
    found = []
    for number, (genome, beds_of) in enumerate(((text, rows), (mirrored, turned))):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_genome(folder / "genome.fa", {"c": genome})
        for anchor in ("centre", "start", "end"):
            _, tables = run(
                folder,
                write_bed(folder / "a.bed", beds_of),
                window=50,
                anchor=anchor,
                negatives="shuffled",
                val_fraction=0.0,
                test_fraction=0.0,
            )
            found.append(sorted(row["sequence"] for row in rows_of(tables) if row["label"] == "1"))
    assert found[:3] == found[3:]


def shares(text: str) -> tuple[float, float]:
    upper = text.upper()
    return (upper.count("G") + upper.count("C")) / len(text), sum(map(str.islower, text)) / len(text)


def test_negatives_are_matched_and_keep_their_distance(tmp_path: Path, peaks: list[Bed]) -> None:
    report, tables = run(
        tmp_path,
        tmp_path / "peaks.bed",
        window=100,
        distance=70,
        negatives_per_positive=2,
        gc_tolerance=0.05,
        repeat_tolerance=0.25,
        val_contigs=("c",),
        test_contigs=("b",),
    )
    texts = dict(zip("abc", (tmp_path / "genome.fa").read_text().split("\n")[1::2], strict=True))
    for split, contig in (("train", "a"), ("dev", "c"), ("test", "b")):
        rows = tables[split]
        assert {row["contig"] for row in rows} == {contig}
        positives = [row for row in rows if row["label"] == "1"]
        negatives = [row for row in rows if row["label"] == "0"]
        of_windows = [
            np.array([shares(texts[contig][int(row["start"]) : int(row["end"])]) for row in rows])
            for rows in (negatives, positives * 2)
        ]
        # Each negative can have a positive of its own that is like it, and no positive has more than two.
        is_like = (np.abs(of_windows[0][:, None] - of_windows[1]) < [0.05, 0.25]).all(axis=2)
        assert (maximum_bipartite_matching(csr_array(is_like), "column") >= 0).all()
        assert len(negatives) > 1.5 * len(positives)
        places = sorted((int(row["start"]), int(row["end"])) for row in negatives)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(places))
        for row in negatives:
            start, end = int(row["start"]), int(row["end"])
            assert row["sequence"] == slow_sequence(texts[contig], start, end, row["strand"])
            assert "N" not in row["sequence"]
            for name, first, last, _ in peaks:
                assert name != contig or end <= first - 70 or start >= last + 70
    missing = sum(number for reason, number in report["dropped"].items() if reason.startswith("no negative found"))
    positives_used = sum(row["label"] == "1" for row in rows_of(tables))
    assert sum(row["label"] == "0" for row in rows_of(tables)) == 2 * positives_used - missing


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, peaks: list[Bed]) -> None:
    texts = []
    for seed in (1, 1, 2):
        run(tmp_path, tmp_path / "peaks.bed", window=100, seed=seed, block_bases=5000)
        texts.append((tmp_path / "out" / "train.csv").read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_splits_by_blocks_share_no_base(tmp_path: Path, peaks: list[Bed]) -> None:
    report, tables = run(
        tmp_path, tmp_path / "peaks.bed", window=300, block_bases=1000, val_fraction=0.2, test_fraction=0.3
    )
    bases: dict[str, set[tuple[str, int]]] = {
        split: {(row["contig"], i) for row in rows for i in range(int(row["start"]), int(row["end"]))}
        for split, rows in tables.items()
    }
    assert not bases["train"] & bases["dev"] and not bases["train"] & bases["test"] and not bases["dev"] & bases["test"]
    assert report["dropped"]["crosses the border of two splits"] > 0
    total = sum(report["rows"].values())
    assert 0.1 < report["rows"]["dev"] / total < 0.3 and 0.2 < report["rows"]["test"] / total < 0.4


def test_shuffled_negatives_keep_pairs_of_neighbours(tmp_path: Path, peaks: list[Bed]) -> None:
    _, tables = run(tmp_path, tmp_path / "peaks.bed", window=100, negatives="shuffled", block_bases=5000)
    rows = rows_of(tables)
    positives = {(row["contig"], row["start"], row["strand"]): row["sequence"] for row in rows if row["label"] == "1"}
    negatives = [row for row in rows if row["label"] == "0"]
    assert len(negatives) == len(positives)
    changed = 0
    for row in negatives:
        source = positives[row["contig"], row["start"], row["strand"]]
        pairs = [Counter(itertools.pairwise(text)) for text in (source, row["sequence"])]
        assert pairs[0] == pairs[1]
        changed += source != row["sequence"]
    assert changed == len(negatives)


def test_classes_from_files_names_and_overlaps(tmp_path: Path) -> None:
    write_genome(tmp_path / "genome.fa", {"c": random_dna(9, 5000)})
    one = write_bed(tmp_path / "one.bed", [("c", 100 * i, 100 * i + 20, "+") for i in range(1, 20)])
    two = write_bed(tmp_path / "two.x.bed", [("c", 100 * i + 50, 100 * i + 70, "-") for i in range(1, 20)])
    flags: dict[str, Any] = {"window": 20, "val_fraction": 0.0, "test_fraction": 0.0}
    _, tables = run(tmp_path, one, f"second={two}", **flags)
    assert Counter(row["label"] for row in tables["train"]) == {"one": 19, "second": 19}
    # An interval counts if it lies in the window completely, on the window's strand.
    inside = write_bed(
        tmp_path / "in.bed", [("c", 100, 120, "+"), ("c", 199, 205, "+"), ("c", 305, 306, "-"), ("c", 419, 420, ".")]
    )
    _, tables = run(tmp_path, one, label="overlap", overlap=str(inside), **flags)
    assert [row["start"] for row in tables["train"] if row["label"] == "1"] == ["100", "400"]
    # A window without a strand takes intervals of both.
    unstranded = write_bed(tmp_path / "three.bed", [("c", 100 * i, 100 * i + 20, ".") for i in range(1, 20)])
    for words in ((unstranded, {}), (one, {"ignore_strand": True})):
        _, tables = run(tmp_path, words[0], label="overlap", overlap=str(inside), **flags, **words[1])
        assert [row["start"] for row in tables["train"] if row["label"] == "1"] == ["100", "300", "400"]


def test_an_overlap_beyond_its_contig_is_in_no_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither is an empty interval at the end of a contig in a window of the next or the previous contig."""
    write_genome(tmp_path / "genome.fa", {"c": random_dna(9, 1000), "d": random_dna(10, 1000)})
    both = [(name, start, start + 20, "+") for name in "cd" for start in (0, 260, 500, 980)]
    windows = write_bed(tmp_path / "windows.bed", both)
    inside = write_bed(
        tmp_path / "in.bed",
        [("c", 1261, 1270, "."), ("c", 995, 1001, "."), ("c", 1000, 1000, "."), ("d", 505, 520, "."), ("d", 0, 0, ".")],
    )
    flags: dict[str, Any] = {"window": 20, "label": "overlap", "overlap": str(inside)}
    _, tables = run(tmp_path, windows, val_fraction=0.0, test_fraction=0.0, **flags)
    found = [(row["contig"], row["start"]) for row in tables["train"] if row["label"] == "1"]
    assert found == [("c", "980"), ("d", "0"), ("d", "500")]
    assert "in.bed: 2 intervals reach beyond their contig and are not used (first: line 1)" in capsys.readouterr().err


def test_a_window_with_two_labels_is_dropped(tmp_path: Path) -> None:
    write_genome(tmp_path / "genome.fa", {"c": random_dna(10, 3000)})
    rows: list[Bed] = [("c", 100 * i, 100 * i + 20, "+") for i in range(1, 20)]
    one = write_bed(tmp_path / "one.bed", [*rows, rows[3]])
    two = write_bed(tmp_path / "two.bed", [rows[0], *(("c", s + 50, e + 50, "+") for _, s, e, _ in rows)])
    report, tables = run(tmp_path, one, two, window=20, val_fraction=0.0, test_fraction=0.0)
    assert report["dropped"] == {"same window as an earlier interval": 1, "same window with two labels": 2}
    assert Counter(row["label"] for row in tables["train"]) == {"one": 18, "two": 19}


@pytest.mark.parametrize("window", [15, 30, 200])
def test_near_duplicates_between_splits_are_dropped_or_counted(tmp_path: Path, window: int) -> None:
    shared = random_dna(13, window, "ACGT")
    reverse = slow_sequence(shared, 0, window, "-")
    rest = random_dna(19, 2000)
    write_genome(
        tmp_path / "genome.fa",
        {"a": random_dna(14, 2000) + shared + random_dna(15, 2000), "b": random_dna(16, 999) + reverse + rest},
    )
    rows: list[Bed] = [("a", 2000, 2000 + window, "+"), ("b", 999, 999 + window, "+")]
    rows += [(name, start, start + window, "+") for name in "ab" for start in range(20, 700, window)]
    bed = write_bed(tmp_path / "a.bed", rows)
    flags: dict[str, Any] = {"window": window, "test_contigs": ("b",), "val_fraction": 0.0, "negatives": "shuffled"}
    kept, tables = run(tmp_path, bed, near_duplicates="keep", **flags)
    assert kept["near_duplicates"] == {"dev": 0, "test": 1} and not kept["dropped"]
    assert sum(row["start"] == "999" for row in tables["test"]) == 2
    dropped, tables = run(tmp_path, bed, **flags)
    assert dropped["dropped"] == {"near-duplicate of a row in an earlier table": 1}
    assert dropped["near_duplicates"] == {"dev": 0, "test": 0}
    assert not any(row["start"] == "999" for row in tables["test"])
    assert len(tables["test"]) == kept["rows"]["test"] - 2


def test_a_negative_is_never_a_copy_of_a_positive(tmp_path: Path) -> None:
    """Half of the genome is copies of one repeat, of which one is a positive."""
    repeat = random_dna(20, 100, "ACGT")
    turned = slow_sequence(repeat, 0, 100, "-")
    text = "".join(random_dna(seed, 100, "ACGT") + (repeat, turned)[seed % 2] for seed in range(21, 221))
    write_genome(tmp_path / "genome.fa", {"c": text})
    bed = write_bed(tmp_path / "a.bed", [("c", 100, 110, "+"), ("c", 205, 215, "+"), ("c", 400, 410, "+")])
    flags: dict[str, Any] = {"window": 10, "distance": 0, "negatives_per_positive": 300, "gc_tolerance": 1.0}
    report, tables = run(tmp_path, bed, val_fraction=0.0, test_fraction=0.0, **flags)
    positives = {row["sequence"] for row in tables["train"] if row["label"] == "1"}
    positives |= {slow_sequence(text, 0, len(text), "-") for text in positives}
    assert not positives & {row["sequence"] for row in tables["train"] if row["label"] == "0"}
    assert report["dropped"]["negative with the bases of a positive"] > 0


def test_one_split_by_contigs_and_the_other_by_blocks(tmp_path: Path, peaks: list[Bed]) -> None:
    _, tables = run(tmp_path, tmp_path / "peaks.bed", window=100, test_contigs=("b",), block_bases=2000)
    contigs = {split: {row["contig"] for row in rows} for split, rows in tables.items()}
    assert contigs == {"train": {"a", "c"}, "dev": {"a", "c"}, "test": {"b"}}


def test_every_split_has_negatives_from_blocks_without_positives(tmp_path: Path, peaks: list[Bed]) -> None:
    write_bed(tmp_path / "few.bed", [("a", start, start + 50, "+") for start in range(1000, 15000, 300)])
    _, tables = run(tmp_path, tmp_path / "few.bed", window=50, block_bases=1000, val_fraction=0.3, test_fraction=0.3)
    for rows in tables.values():
        far = [row["contig"] != "a" or int(row["start"]) > 15000 for row in rows if row["label"] == "0"]
        assert sum(far) > len(far) / 2
