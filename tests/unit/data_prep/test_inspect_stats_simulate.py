"""`inspect`, `stats` and `simulate`: their output agrees with the shards and the genome."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from slow_fasta import slow_file

from data_prep.cli import main
from data_prep.simulate import WINDOW_BASES
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.data.shards import read_metas


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated genome, built with validation data."""
    folder = tmp_path_factory.mktemp("world")
    assert main(["simulate", "--out", str(folder), "--bases", "120000", "--rows", "100"]) == 0
    words = ["--val-fraction", "0.1", "--block-bases", "5000", "--segment-tokens", "3000", "--workers", "1"]
    assert main(["build", str(folder / "genome.fa"), "--out", str(folder / "out"), *words]) == 0
    return folder


def printed_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    capsys.readouterr()
    assert main(list(words)) == 0
    content: dict = json.loads(capsys.readouterr().out)
    return content


def test_inspect_gives_one_object_with_the_counts(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = printed_json(capsys, "inspect", str(world / "out"), "--json", "--samples", "20")
    manifest = load_manifest(world / "out")
    assert content["tokenizer"] == {"kind": "kmer", "vocab_size": 4101, "k": 6, "base_order": "ATCG"}
    assert content["fingerprint"] == manifest.fingerprint
    for split in ("train", "val"):
        shards = manifest.shards_of(split)
        assert content["splits"][split]["shards"] == len(shards)
        assert content["splits"][split]["segments"] == sum(len(shard.segments) for shard in shards)
        assert content["splits"][split]["tokens"] == sum(sum(shard.segments) for shard in shards)
    stored = sum(row["bases"] for row in content["splits"].values())
    assert content["bases"] == 120_000 == stored + sum(content["left_out"].values())
    records = dict(slow_file(world / "genome.fa"))
    assert len(content["samples"]) == 20
    for sample in content["samples"]:
        assert sample["bases"] == records[sample["contig"]][sample["start"] : sample["end"]].upper()


def test_inspect_as_text_shows_samples(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["inspect", str(world / "out"), "--samples", "2"]) == 0
    out = capsys.readouterr().out
    assert "120,000 bases in 5 contigs of genome; 6-mers" in out and out.count("genome:sim") == 2


def test_inspect_writes_the_held_out_ranges(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each base of a segment of val, and no other one, is in one range."""
    path = tmp_path / "held_out.bed"
    assert main(["inspect", str(world / "out"), "--samples", "0", "--bed", str(path)]) == 0
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert len(rows) > 1 and {row[3] for row in rows} == {"val"}
    found = Counter((row[0], base) for row in rows for base in range(int(row[1]), int(row[2])))
    manifest = load_manifest(world / "out")
    metas = [meta for shard in manifest.shards_of("val") for meta in read_metas(world / "out" / shard.name)]
    assert len(metas) > len(rows), "segments of one block are one range"
    assert set(found) == {(meta["contig"], base) for meta in metas for base in range(meta["start"], meta["end"])}
    assert set(found.values()) == {1}
    capsys.readouterr()
    assert main(["inspect", str(world / "out"), "--bed", str(path)]) == 2
    assert capsys.readouterr().err.endswith("held_out.bed: exists already; choose another file\n")


def test_inspect_names_split_and_genome(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for genome in ("one", "two"):
        (tmp_path / f"{genome}.fa").write_bytes((world / "genome.fa").read_bytes())
    words = ["--val-contigs", "one:sim1", "--test-contigs", "two:sim2", "--min-tokens", "1000", "--workers", "1"]
    files = [str(tmp_path / "one.fa"), str(tmp_path / "two.fa")]
    assert main(["build", *files, "--out", str(tmp_path / "out"), *words]) == 0
    bed = tmp_path / "held_out.bed"
    assert main(["inspect", str(tmp_path / "out"), "--bed", str(bed)]) == 0
    rows = {(row[0], row[3]) for line in bed.read_text().splitlines() if (row := line.split("\t"))}
    assert rows == {("one:sim1", "val"), ("two:sim2", "test")}
    # `build` reads the file: what it leaves out are these ranges, on these genomes only.
    ranges = [line.split("\t") for line in bed.read_text().splitlines()]
    assert main(["build", *files, "--out", str(tmp_path / "rest"), "--exclude", str(bed), "--workers", "1"]) == 0
    left_out = load_manifest(tmp_path / "rest").contigs.left_out["excluded_region"]
    assert left_out.sum() == sum(int(end) - int(start) for _, start, end, _ in ranges)
    assert main(["build", files[0], "--out", str(tmp_path / "all"), "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "all"), "--bed", str(tmp_path / "other.bed")]) == 2
    assert capsys.readouterr().err.endswith("holds out nothing; omit it\n") and not (tmp_path / "other.bed").exists()


def test_build_prints_the_same_summary_as_inspect(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--val-fraction", "0.1", "--block-bases", "5000", "--segment-tokens", "3000", "--workers", "1"]
    capsys.readouterr()
    assert main(["build", str(world / "genome.fa"), "--out", str(world / "out"), *words]) == 0
    built = capsys.readouterr()
    assert "shards are already finished" in built.err
    assert main(["inspect", str(world / "out"), "--samples", "0"]) == 0
    assert capsys.readouterr().out == built.out


def test_stats_count_every_letter(world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    content = printed_json(
        capsys, "stats", str(world / "out"), "--json", "--workers", "1", "--plot", str(tmp_path / "h.png")
    )
    expected = Counter("".join(sequence.upper() for _, sequence in slow_file(world / "genome.fa")))
    letters: Counter[str] = Counter()
    for row in content["splits"].values():
        letters.update(row["letters"])
        assert row["gc"] == pytest.approx((row["letters"]["C"] + row["letters"]["G"]) / sum(row["letters"].values()))
    too_short = content["left_out"].get("too_short", 0)
    missing = {letter: expected[letter] - letters[letter] for letter in "ACGT"}
    assert sum(missing.values()) == too_short and min(missing.values()) >= 0
    assert letters["N"] == 0
    assert sum(row["segments"] for row in content["segment_tokens"]) == sum(
        len(shard.segments) for shard in load_manifest(world / "out").shards
    )
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")


def test_stats_never_draw_into_a_shard(world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shard = next((world / "out").glob("shard-*.tar"))
    content = shard.read_bytes()
    (tmp_path / "h.png").symlink_to(shard)
    capsys.readouterr()
    assert main(["stats", str(world / "out"), "--workers", "1", "--plot", str(tmp_path / "h.png")]) == 2
    assert "h.png: is the same file as the input" in capsys.readouterr().err
    assert shard.read_bytes() == content


def test_stats_as_text_show_a_histogram(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["stats", str(world / "out"), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "bases/token" in out and "█" in out and "left out, ambiguous" in out


def test_a_simulated_genome_has_contigs_gaps_and_soft_masked_repeats(world: Path) -> None:
    records = slow_file(world / "genome.fa")
    text = "".join(sequence for _, sequence in records)
    assert len(records) == 5 and len(text) == 120_000
    assert set(text) == set("ACGTacgtN")
    assert 0.1 < sum(letter.islower() for letter in text) / len(text) < 0.5


def test_a_simulation_depends_only_on_its_seed(tmp_path: Path) -> None:
    for name, seed in (("one", "7"), ("two", "7"), ("three", "8")):
        assert (
            main(["simulate", "--out", str(tmp_path / name), "--bases", "30000", "--rows", "20", "--seed", seed]) == 0
        )
    for file in ("genome.fa", "train.csv", "dev.csv", "test.csv"):
        one, two, three = ((tmp_path / name / file).read_bytes() for name in ("one", "two", "three"))
        assert one == two != three


def test_base_composition_does_not_reveal_the_label(world: Path) -> None:
    shares: dict[str, list[float]] = {"0": [], "1": []}
    with open(world / "test.csv", newline="") as stream:
        for row in csv.DictReader(stream):
            assert len(row["sequence"]) == WINDOW_BASES and set(row["sequence"]) <= set("ACGT")
            shares[row["label"]].append(sum(letter in "GC" for letter in row["sequence"]) / WINDOW_BASES)
    assert len(shares["0"]) == len(shares["1"]) == 500
    means = [sum(values) / len(values) for values in shares.values()]
    assert abs(means[0] - means[1]) < 0.01


def test_label_1_sequences_contain_motifs_of_the_genome(world: Path) -> None:
    """Frequent words of the genome occur far more often in sequences with label 1 than in those with label 0."""
    text = "".join(sequence.upper() for _, sequence in slow_file(world / "genome.fa"))
    common = {word for word, count in Counter(text[i : i + 8] for i in range(len(text) - 7)).items() if count > 60}
    shares = {"0": 0.0, "1": 0.0}
    with open(world / "test.csv", newline="") as stream:
        for row in csv.DictReader(stream):
            sequence = row["sequence"]
            shares[row["label"]] += any(sequence[i : i + 8] in common for i in range(len(sequence) - 7)) / 500
    assert shares["1"] > 0.6 and shares["1"] > shares["0"] + 0.3, shares


def test_labelled_sequences_do_not_occur_in_the_genome(world: Path) -> None:
    text = "".join(sequence.upper() for _, sequence in slow_file(world / "genome.fa"))
    with open(world / "train.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 100 and not any(row["sequence"][:60] in text for row in rows)


@pytest.mark.parametrize(("words", "said"), [(["--bases", "100"], "--bases 100"), (["--rows", "1"], "--rows 1")])
def test_a_simulation_too_small_is_refused(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--out", str(tmp_path / "x"), *words]) == 2
    assert said in capsys.readouterr().err
