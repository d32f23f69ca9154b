"""Complete builds of generated FASTA in this process, compared with the slow reference reader."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from slow_fasta import fasta_texts, slow_ids, slow_records, slow_runs

from data_prep.cli import main
from data_prep.parallel import open_executor
from data_prep.sharding.build_shards import Job, build
from data_prep.sharding.options import BuildOptions
from data_prep.sharding.sources import Source
from data_prep.verify import find_faults
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.data.shards import read_segments
from dnabert_rm.utils.errors import DataError

Segment = tuple[dict, np.ndarray]
# On a disk, flushing every shard would take most of the time.
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def build_text(text: str, folder: Path, options: BuildOptions) -> list[Segment]:
    """Build the genome "g" from `text` and verify it; return its segments in order."""
    (folder / "g.fa").write_bytes(text.encode())
    with open_executor(1) as executor:
        assert executor is not None
        build(Job([Source("g", str(folder / "g.fa"))], options, folder / "out"), executor)
        assert list(find_faults(load_manifest(folder / "out"), folder / "out", executor)) == []
    found, keys = [], []
    for shard in load_manifest(folder / "out").shards:
        in_shard = list(read_segments(folder / "out" / shard.name))
        assert {meta["split"] for _, meta, _ in in_shard} == {shard.split}
        assert sum(len(ids) for _, _, ids in in_shard) <= options.shard_tokens
        keys += [key for key, _, _ in in_shard]
        found += [(meta, ids) for _, meta, ids in in_shard]
    assert keys == [f"{i:07d}" for i in range(len(keys))]
    return found


@st.composite
def build_options(draw: st.DrawFn) -> BuildOptions:
    segment_tokens = draw(st.integers(1, 40))
    return BuildOptions(
        k=draw(st.integers(3, 8)),
        segment_tokens=segment_tokens,
        min_tokens=draw(st.integers(1, max(1, segment_tokens // 2))),
        shard_tokens=segment_tokens * draw(st.integers(1, 5)),
    )


def is_rna(records: list[tuple[str, str]]) -> bool:
    letters = "".join(sequence for _, sequence in records).upper()
    return letters.count("U") > letters.count("T")


@given(fasta_texts(), build_options())
@example("\ufeff>a letter t in a header\nAAA\nU", BuildOptions(k=3, segment_tokens=1, min_tokens=1, shard_tokens=1))
@settings(deadline=None, max_examples=60)
def test_a_build_holds_every_run_of_the_slow_reader_and_accounts_for_the_rest(text: str, options: BuildOptions) -> None:
    assert options.k is not None
    records = slow_records(text.replace("\r\n", "\n"))
    runs = {name: slow_runs(sequence, options.k, options.min_tokens) for name, sequence in records}
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        try:
            segments = build_text(text, Path(folder), options)
        except DataError as error:
            proteins = "not protein" in str(error)
            rna = "has more U than T" in str(error) and is_rna(records)
            assert proteins or rna or ("no segment is left" in str(error) and not any(runs.values()))
            return
        assert not is_rna(records)
        contigs = list(load_manifest(Path(folder) / "out").contigs)
    tokens: dict[str, list[int]] = {name: [] for name, _ in records}
    for meta, ids in segments:
        bases = dict(records)[meta["contig"]][meta["start"] : meta["end"]]
        assert ids.tolist() == slow_ids(bases, options.k)
        assert ids.dtype == (np.uint32 if options.k == 8 else np.uint16)
        assert len(ids) <= options.segment_tokens
        tokens[meta["contig"]] += range(meta["start"], meta["end"] - options.k + 1)
    for (name, sequence), contig in zip(records, contigs, strict=True):
        assert tokens[name] == [i for start, end in runs[name] for i in range(start, end - options.k + 1)]
        stored = sum(end - start for start, end in runs[name])
        assert (contig.contig, contig.length, contig.tokens) == (name, len(sequence), len(tokens[name]))
        assert sum(contig.left_out.values()) == len(sequence) - stored
        letters = sum(letter not in "ACGTacgt" for letter in sequence)
        assert contig.left_out.get("ambiguous", 0) == letters


@given(fasta_texts(), st.integers(1, 5), st.integers(3, 6))
@settings(deadline=None, max_examples=40)
def test_short_ambiguous_runs_are_stored_as_unk(text: str, unk_bases: int, k: int) -> None:
    records = dict(slow_records(text.replace("\r\n", "\n")))
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        try:
            segments = build_text(text, Path(folder), BuildOptions(k=k, unk_bases=unk_bases, segment_tokens=50))
        except DataError as error:
            assert any(said in str(error) for said in ("not protein", "no segment is left", "more U than T"))
            return
    for meta, ids in segments:
        bases = records[meta["contig"]][meta["start"] : meta["end"]].upper()
        assert ids.tolist() == slow_ids(bases, k)
        assert not re.search(f"[^ACGT]{{{unk_bases + 1}}}", bases)


def sequence_of(length: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGTacgt"), length))


@pytest.mark.parametrize("seed", range(3))
def test_splits_by_fraction_share_no_base_and_lose_none(tmp_path: Path, seed: int) -> None:
    text = f">a\n{sequence_of(3000)}\n>b\n{sequence_of(1000, 1)}NNN{sequence_of(500, 2)}\n"
    options = BuildOptions(val_fraction=0.1, test_fraction=0.1, block_bases=100, seed=seed, segment_tokens=70)
    split_of: dict[tuple[str, int], set[str]] = {}
    for meta, _ in build_text(text, tmp_path, options):
        for base in range(meta["start"], meta["end"]):
            split_of.setdefault((meta["contig"], base), set()).add(meta["split"])
    assert all(len(splits) == 1 for splits in split_of.values())
    assert len(split_of) == 4500
    counts = {name: sum(splits == {name} for splits in split_of.values()) for name in ("train", "val", "test")}
    assert counts["val"] == pytest.approx(450, abs=100) and counts["test"] == pytest.approx(450, abs=100)


def test_another_seed_gives_other_blocks_and_the_same_seed_the_same(tmp_path: Path) -> None:
    text = f">a\n{sequence_of(5000)}\n"

    def coordinates(name: str, seed: int) -> list[tuple[int, str]]:
        (tmp_path / name).mkdir()
        options = BuildOptions(val_fraction=0.2, block_bases=100, seed=seed)
        return [(meta["start"], meta["split"]) for meta, _ in build_text(text, tmp_path / name, options)]

    assert coordinates("one", 3) == coordinates("two", 3) != coordinates("three", 4)


def test_lower_case_ranges_are_recorded(tmp_path: Path) -> None:
    text = ">a\nACGTacgtAC\nggNNttACGT\naCGTACGTACGTACGTAC\n"
    options = BuildOptions(k=3, segment_tokens=6, record_soft_mask=True)
    sequence = slow_records(text)[0][1]
    lower = {i for i, letter in enumerate(sequence) if letter.islower()}
    for meta, ids in build_text(text, tmp_path, options):
        marked = [i for start, end in meta["soft_masked"] for i in range(start, end)]
        assert marked == sorted(lower & set(range(meta["start"], meta["end"])))
        assert ids.tolist() == slow_ids(sequence[meta["start"] : meta["end"]], 3)


def test_u_is_t_with_rna_and_a_gap_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ">a\nACGUACGUUUACG\n>b\nTTTT\n"
    (tmp_path / "no").mkdir()
    (tmp_path / "yes").mkdir()
    ranges = [(meta["start"], meta["end"]) for meta, _ in build_text(text, tmp_path / "no", BuildOptions(k=3))]
    assert ranges == [(0, 3), (4, 7), (10, 13), (0, 4)]
    assert "4 letters U are left out; pass --rna to read them as T" in capsys.readouterr().err
    (_, ids), _ = build_text(text, tmp_path / "yes", BuildOptions(k=3, rna=True))
    assert ids.tolist() == slow_ids("ACGTACGTTTACG", 3)
    (tmp_path / "rna").mkdir()
    with pytest.raises(DataError, match="has more U than T, so it holds RNA; pass --rna to read U as T"):
        build_text(">a\nACGUACGUUUACG\n>b\nTTT\n", tmp_path / "rna", BuildOptions(k=3))


def test_two_genomes_can_have_contigs_of_the_same_name(tmp_path: Path) -> None:
    for genome, bases in (("fly", "ACGTACGTAA"), ("man", "GGTTGGTTAC")):
        (tmp_path / f"{genome}.fa").write_text(f">chr1\n{bases}\n")
    sources = [Source(genome, str(tmp_path / f"{genome}.fa")) for genome in ("fly", "man")]
    with open_executor(1) as executor:
        assert executor is not None
        build(Job(sources, BuildOptions(test_contigs=("man:chr1",)), tmp_path / "out"), executor)
        both = [Source("g", source.path) for source in sources]
        with pytest.raises(DataError, match=r"man.fa: contig 'chr1' of genome 'g' is also in .*fly.fa"):
            build(Job(both, BuildOptions(), tmp_path / "other"), executor)
    found = {
        (meta["genome"], meta["contig"], meta["split"]): ids.tolist()
        for shard in load_manifest(tmp_path / "out").shards
        for _, meta, ids in read_segments(tmp_path / "out" / shard.name)
    }
    assert found == {
        ("fly", "chr1", "train"): slow_ids("ACGTACGTAA", 6),
        ("man", "chr1", "test"): slow_ids("GGTTGGTTAC", 6),
    }


def test_an_empty_record_and_one_of_gaps_are_in_the_manifest(tmp_path: Path) -> None:
    build_text(">empty\n>gaps\nNNNNN\n>short\nACGTA\n>good\nACGTACGT\n", tmp_path, BuildOptions())
    contigs = {contig.contig: contig for contig in load_manifest(tmp_path / "out").contigs}
    assert (contigs["empty"].length, contigs["empty"].left_out) == (0, {})
    assert contigs["gaps"].left_out == {"ambiguous": 5}
    assert contigs["short"].left_out == {"too_short": 5}
    assert contigs["good"].tokens == 3


def test_a_build_without_a_train_split_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = tmp_path / "one.fa"
    fasta.write_text(">chr2\n" + "ACGTTGCA" * 100 + "\n")
    assert main(["build", str(fasta), "--out", str(tmp_path / "out"), "--val-contigs", "chr2"]) == 0
    assert "there is no train split; hold out fewer contigs" in capsys.readouterr().err
