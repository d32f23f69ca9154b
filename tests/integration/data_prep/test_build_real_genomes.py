"""Builds of the real genomes: every base is stored, with the ids of DNABERT's vocabulary."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset
from builds import build, tar_urls
from slow_fasta import slow_file, slow_runs
from support import run_cli

from dnabert_rm.data.manifest import load_manifest


@pytest.fixture(scope="module")
def genomes(test_data: Path) -> list[Path]:
    return sorted((test_data / "genomes").glob("*.fa*"))


@pytest.fixture(scope="module")
def all_genomes(genomes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("all") / "out"
    build(*genomes, "--out", out, "--workers", "2", "--shard-tokens", "5000000")
    return out


def test_shards_of_real_genomes_decode_to_every_base(all_genomes: Path, genomes: list[Path], test_data: Path) -> None:
    """Read with plain webdataset and DNABERT's vocabulary file, without our code."""
    words = np.array((test_data / "dnabert" / "6" / "vocab.txt").read_text().split(), dtype="S6")
    records = {
        (path.name.partition(".")[0], name): np.frombuffer(sequence.upper().encode(), np.uint8)
        for path in genomes
        for name, sequence in slow_file(path)
    }
    token_seen = {key: np.zeros(len(sequence), dtype=bool) for key, sequence in records.items()}
    keys = set()
    dataset = webdataset.WebDataset(tar_urls(all_genomes), shardshuffle=False).decode()
    for sample in dataset:
        meta, all_ids = sample["json"], sample["ids.npy"]
        assert all_ids.dtype == np.uint16 and all_ids.ndim == 1 and meta["split"] == "train"
        ends = np.cumsum(meta["tokens"])
        assert ends[-1] == len(all_ids)
        for contig, start, end, ids in zip(
            meta["contig"], meta["start"], meta["end"], np.split(all_ids, ends[:-1]), strict=True
        ):
            key = (meta["genome"], contig)
            expected = np.lib.stride_tricks.sliding_window_view(records[key][start:end], 6)
            assert (words[ids].view(np.uint8).reshape(-1, 6) == expected).all()
            assert not token_seen[key][start : start + len(ids)].any()
            token_seen[key][start : start + len(ids)] = True
        assert sample["__key__"] not in keys
        keys.add(sample["__key__"])
    for key, sequence in records.items():
        expected_tokens = np.zeros(len(sequence), dtype=bool)
        for start, end in slow_runs(sequence.tobytes().decode(), 6):
            expected_tokens[start : end - 5] = True
        assert (token_seen[key] == expected_tokens).all(), key
    contigs = {(contig.genome, contig.contig): contig for contig in load_manifest(all_genomes).contigs}
    assert list(contigs) == list(records)
    for key, sequence in records.items():
        stored = sum(end - start for start, end in slow_runs(sequence.tobytes().decode(), 6))
        assert contigs[key].length == len(sequence) == stored + sum(contigs[key].left_out.values())
    assert sum(contig.length for contig in contigs.values()) == 21_734_086


def test_gaps_and_other_letters_split_at_their_coordinates(all_genomes: Path, genomes: list[Path]) -> None:
    ranges: dict[str, list[tuple[int, int]]] = {}
    for sample in webdataset.WebDataset(tar_urls(all_genomes), shardshuffle=False).decode():
        meta = sample["json"]
        for contig, start, end in zip(meta["contig"], meta["start"], meta["end"], strict=True):
            ranges.setdefault(f"{meta['genome']}:{contig}", []).append((start, end))
    human = sorted(ranges["human_hg38_chr2_1-2333275:chr2"])
    assert human[0][0] == 10_000 and human[-1][1] == 2_333_275, "starts after 10,000 N and includes the last base"
    (virus,) = ranges["sars_cov_2_MN908947:MN908947.3"]
    assert virus == (0, 29_903)
    letters = set()
    for name, sequence in slow_file(genomes[0]):
        found = ranges[f"athaliana_1pct:{name}"]
        for match in re.finditer("[^ACGT]+", sequence.upper()):
            letters |= set(match.group())
            assert not any(first < match.end() and match.start() < last for first, last in found), "inside a segment"
        for start, end in slow_runs(sequence, 6):
            assert any(first == start for first, _ in found) and any(last == end for _, last in found)
    assert letters == set("NYKS")


def test_verify_finds_no_fault(all_genomes: Path) -> None:
    done = run_cli("-m", "data_prep", "verify", all_genomes)
    assert (done.returncode, done.stderr) == (0, "") and "match the manifest" in done.stdout


def test_verify_exits_with_1_and_names_the_damaged_shard(all_genomes: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(all_genomes, tmp_path / "copy"))
    path = Path(tar_urls(copy)[2])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    done = run_cli("-m", "data_prep", "verify", copy, "--workers", "2")
    assert done.returncode == 1 and path.name in done.stdout and "checksum" in done.stdout
