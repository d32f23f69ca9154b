"""`verify` finds each kind of fault and names the shard or contig; `leakage` finds sequences that splits share."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_prep import leakage
from data_prep.leakage import find_overlaps, subsequence_hashes
from data_prep.parallel import open_executor
from data_prep.sharding.build_shards import Job, build
from data_prep.sharding.options import BuildOptions
from data_prep.sharding.sources import Source
from data_prep.verify import find_faults, run
from dnabert_rm.data.columns import ContigInfo, ContigTable
from dnabert_rm.data.manifest import Manifest, ShardInfo, load_manifest, write_manifest
from dnabert_rm.data.shards import read_segments
from dnabert_rm.genome import kmer
from dnabert_rm.utils.files import sha256_of_file

Member = tuple[str, bytes]


def bases(length: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two contigs, train and val, several shards."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "g.fa").write_text(f">a\n{bases(505, 0)}NN{bases(300, 1)}\n>b\n{bases(200, 2)}\n")
    options = BuildOptions(segment_tokens=100, shard_tokens=300, val_contigs=("b",))
    with open_executor(1) as executor:
        assert executor is not None
        build(Job([Source("g", str(folder / "g.fa"))], options, folder / "out"), executor)
    return folder / "out"


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def faults(folder: Path) -> list[str]:
    with open_executor(1) as executor:
        assert executor is not None
        return list(find_faults(load_manifest(folder), folder, executor))


def rewrite_shard(folder: Path, change: Callable[[list[Member]], list[Member]], number: int = 1) -> str:
    """Change a shard's members and update its manifest entry, as if the writer had a bug."""
    manifest = load_manifest(folder)
    info = manifest.shards[number]
    path = folder / info.name
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    path.chmod(0o644)
    with tarfile.open(path, "w") as tar:
        for name, data in change(members):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    fixed = replace(info, bytes=path.stat().st_size, sha256=sha256_of_file(path))
    write_manifest(folder, replace(manifest, shards=[fixed if shard is info else shard for shard in manifest.shards]))
    return info.name


def npy(ids: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, ids)
    return out.getvalue()


def change_ids(change: Callable[[np.ndarray], np.ndarray], at: int = 0) -> Callable[[list[Member]], list[Member]]:
    def changed(members: list[Member]) -> list[Member]:
        name, data = members[2 * at]
        members[2 * at] = (name, npy(change(np.load(io.BytesIO(data)).copy())))
        return members

    return changed


def change_meta(**fields: object) -> Callable[[list[Member]], list[Member]]:
    """Change fields of the first segment."""

    def changed(members: list[Member]) -> list[Member]:
        content = json.loads(members[1][1])
        for name, value in fields.items():
            content[name] = [value, *content[name][1:]] if isinstance(content[name], list) else value
        members[1] = (members[1][0], json.dumps(content).encode())
        return members

    return changed


NO_SEGMENTS = b'{"contig": [], "end": [], "genome": "g", "split": "train", "start": [], "tokens": []}'


def drop_last(field: str) -> Callable[[list[Member]], list[Member]]:
    """Leave the last segment's value out of a field."""

    def changed(members: list[Member]) -> list[Member]:
        content = json.loads(members[1][1])
        members[1] = (members[1][0], json.dumps({**content, field: content[field][:-1]}).encode())
        return members

    return changed


def put(position: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def changed(ids: np.ndarray) -> np.ndarray:
        ids[position] = value
        return ids

    return changed


def test_an_intact_folder_has_no_fault(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults(built) == []
    with open_executor(1) as executor:
        assert executor is not None
        assert run(built, executor) == 0
    assert "match the manifest" in capsys.readouterr().out


def test_every_single_flipped_byte_is_found(folder: Path) -> None:
    path = folder / load_manifest(folder).shards[0].name
    path.chmod(0o644)
    data = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(data), 30).tolist():
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert len(found := faults(folder)) == 1 and path.name in found[0] and "checksum" in found[0]


def test_a_missing_and_a_shortened_shard_are_named(folder: Path) -> None:
    first, second = (folder / shard.name for shard in load_manifest(folder).shards[:2])
    first.unlink()
    data = second.read_bytes()
    second.chmod(0o644)
    second.write_bytes(data[:-1])
    found = sorted(faults(folder))
    assert len(found) == 2 and first.name in found[0] and second.name in found[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_ids(lambda ids: ids.astype(np.int64)), "is not a 1-D array of unsigned integers"),
        (change_ids(lambda ids: ids.astype(np.uint32)), "holds 100 ids of uint32, but uint16"),
        (change_ids(lambda ids: ids.reshape(1, -1)), "is not a 1-D array"),
        (change_ids(lambda ids: ids[:0]), "gives 298 tokens, but 0000003.ids.npy has 0"),
        (change_ids(lambda ids: ids[:-1]), "gives 298 tokens, but 0000003.ids.npy has 297"),
        (lambda members: change_meta(tokens=99)(change_ids(lambda ids: ids[1:])(members)), "holds 99 tokens, but 105"),
        (lambda members: change_meta(tokens=0)(change_ids(lambda ids: ids[100:])(members)), "holds 0 ids"),
        (change_meta(tokens=99), "gives 297 tokens, but 0000003.ids.npy has 298"),
        (change_meta(tokens="x"), "is not a JSON object with genome"),
        (change_meta(genome=["g"]), "is not a JSON object with genome"),
        (drop_last("contig"), "is not a JSON object with genome"),
        (lambda members: [members[0], (members[1][0], NO_SEGMENTS)], "is not a JSON object with genome"),
        (lambda members: [members[0], (members[1][0], members[1][1][:-1] + b', "strand": ["x", "x", "x"]}')], "'x'"),
        (change_ids(put(105, 4)), "an id outside 5 … 4100"),
        (change_ids(put(250, 4000)), "segment 0000005 has k-mers that do not overlap at tokens"),
        (change_ids(put(7, 4)), "an id outside 5 … 4100"),
        (change_ids(put(7, 0)), "an id outside 5 … 4100"),
        (change_ids(put(7, 1)), "an id outside 5 … 4100"),
        (change_ids(put(7, 4101)), "an id outside 5 … 4100"),
        (
            change_ids(lambda ids: np.where(np.arange(len(ids)) == 7, ids ^ 1, ids).astype(np.uint16)),
            "do not overlap at",
        ),
        (change_ids(lambda ids: ids[::-1].copy()), "do not overlap at tokens"),
        (change_meta(split="val"), "its split 'val'"),
        (change_meta(start=-1), "is not a JSON object with genome"),
        (change_meta(end=10**30), "is not a JSON object with genome"),
        (change_meta(end="x"), "is not a JSON object with genome"),
        (lambda members: [(members[0][0], b"no numpy"), *members[1:]], "is not a NumPy array"),
        (lambda members: [(name.replace("0000003", "0000004"), data) for name, data in members], "is out of order"),
        (lambda members: [(name.replace("0000003", "number3"), data) for name, data in members], "gives 298 tokens"),
        (lambda members: members[:-1], "instead of"),
        (lambda members: members[:-2], "segment lengths do not match"),
        (lambda members: [*members, ("extra.txt", b"")], "'extra.txt' instead of KEY.ids.npy"),
    ],
)
def test_a_shard_that_is_wrong_inside_is_named(folder: Path, change: Callable, said: str) -> None:
    name = rewrite_shard(folder, change)
    (found,) = faults(folder)
    assert name in found and said in found


def test_a_pickle_in_a_shard_is_not_run(folder: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple:
            return (tmp_path.joinpath("harm").touch, ())

    name = rewrite_shard(folder, lambda members: [(members[0][0], npy(np.array([Harm()]))), *members[1:]])
    (found,) = faults(folder)
    assert name in found and not (tmp_path / "harm").exists()


def shift(folder: Path, start: int) -> None:
    """Move the first segment of shard 1 to other coordinates, without changing anything else."""
    rewrite_shard(folder, change_meta(start=start, end=start + 105))


def test_segments_stored_twice_or_missing_are_found(folder: Path) -> None:
    manifest = load_manifest(folder)
    (_, meta, _), *_ = read_segments(folder / manifest.shards[1].name)
    shift(folder, meta["start"] - 1)
    (found,) = faults(folder)
    assert found.startswith("g:a: bases") and "stored twice" in found
    shift(folder, meta["start"] + 1)
    (found,) = faults(folder)
    assert "g:a:" in found and ("stored twice" in found or "do not add up to the contig's 807 bases" in found)


def test_a_base_in_two_splits_is_found(folder: Path) -> None:
    number = next(i for i, shard in enumerate(load_manifest(folder).shards) if shard.split == "val")
    rewrite_shard(folder, change_meta(contig="a"), number)
    found = faults(folder)
    assert any(re.search("g:a: (train and val|val and train) both contain bases", fault) for fault in found)


def test_wrong_contig_entries_are_found(folder: Path) -> None:
    manifest = load_manifest(folder)
    a, b = manifest.contigs
    write_manifest(folder, with_contigs(manifest, replace(a, left_out={"ambiguous": 3}), b))
    assert faults(folder) == ["g:a: 805 bases in segments and 3 left out do not add up to the contig's 807 bases"]
    write_manifest(folder, with_contigs(manifest, a, replace(b, tokens=1)))
    assert faults(folder) == ["g:b: its number of tokens differs from the manifest's 1"]
    write_manifest(folder, with_contigs(manifest, a))
    assert faults(folder) == ["g:b: has segments, but is not listed in the manifest"]
    write_manifest(folder, with_contigs(manifest, a, replace(b, length=100)))
    assert "ends at 200, beyond the contig's 100 bases" in faults(folder)[0]


def with_contigs(manifest: Manifest, *contigs: ContigInfo) -> Manifest:
    return replace(manifest, contigs=ContigTable.from_rows(contigs))


def write_split_shards(folder: Path, sequences: dict[str, str]) -> Manifest:
    """Write one shard with one segment for each split, without the builder."""
    folder.mkdir()
    shards = []
    for number, (split, sequence) in enumerate(sequences.items()):
        path = folder / f"shard-{number:06d}.tar"
        ids = kmer.encode(sequence, 6)
        meta = {"genome": "g", "contig": split, "start": 0, "end": len(sequence), "split": split}
        with webdataset.TarWriter(str(path), mtime=0) as tar:
            tar.write({"__key__": f"{number:07d}", "ids.npy": ids, "json": meta})
        shards.append(ShardInfo(path.name, split, path.stat().st_size, sha256_of_file(path), np.array([len(ids)])))
    manifest = replace(empty_manifest(), shards=shards)
    write_manifest(folder, manifest)
    return manifest


def empty_manifest() -> Manifest:
    from dnabert_rm.data.manifest import TokenizerInfo

    return Manifest(TokenizerInfo("kmer", kmer.vocab_size(6), 6), [], ContigTable.from_rows([]), [])


def test_leakage_counts_shared_subsequences_of_either_strand(tmp_path: Path) -> None:
    train, val, test = bases(2000, 5), bases(600, 6), bases(700, 7)
    shared = bases(150, 8)
    reverse = shared.translate(str.maketrans("ACGT", "TGCA"))[::-1]
    manifest = write_split_shards(
        tmp_path / "leak",
        {"train": train + shared + train[:300], "val": val + shared + "A", "test": test + reverse + test[:100]},
    )
    with open_executor(1) as executor:
        assert executor is not None
        found = find_overlaps(manifest, tmp_path / "leak", 100, executor)
    # 150 shared bases hold 51 subsequences of 100; bases beside them can be equal by chance.
    for (split, other, count, total), length in zip(found, (751, 950, 950), strict=True):
        assert total == length - 100 + 1
        assert 51 <= count <= 54, (split, other)
    assert [(split, other) for split, other, *_ in found] == [("val", "train"), ("test", "train"), ("test", "val")]


def test_leakage_of_a_single_split_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_split_shards(tmp_path / "one", {"train": bases(500, 9)})
    write_split_shards(tmp_path / "two", {"train": bases(500, 9), "val": bases(500, 10)})
    with open_executor(1) as executor:
        assert executor is not None
        assert leakage.run(tmp_path / "one", 100, executor) == 0
        assert capsys.readouterr().out.endswith("one: has a single split, so no sequence can be in two splits\n")
        assert leakage.run(tmp_path / "two", 100, executor) == 0
    assert "val in train: 0.000 % (0 of 401 compared)" in capsys.readouterr().out


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 31, 100])
def test_only_equal_subsequences_have_equal_hashes(width: int) -> None:
    text = bases(300, width)[:150] * 2
    codes = kmer.base_codes(text)
    hashes = subsequence_hashes(codes, width)
    assert len(hashes) == 300 - width + 1

    def canonical(i: int) -> str:
        one = text[i : i + width]
        return min(one, one.translate(str.maketrans("ACGT", "TGCA"))[::-1])

    same: dict[int, str] = {}
    for i, value in enumerate(hashes.tolist()):
        assert same.setdefault(value, canonical(i)) == canonical(i)
    assert len(same) == len({canonical(i) for i in range(len(hashes))})


def test_subsequences_with_ambiguous_bases_are_dropped() -> None:
    codes = np.array([0, 1, 2, 3, kmer.AMBIGUOUS, 0, 1, 2, 3, 3], dtype=np.uint8)
    assert len(subsequence_hashes(codes, 4)) == 1 + 2
    for width in (len(codes), len(codes) + 1, len(codes) + 2, 40):  # a segment may be shorter than the subsequences
        assert len(subsequence_hashes(codes, width)) == 0
