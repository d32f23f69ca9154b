"""Genome names of input files, and decompression of gzip and bgzip."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pysam
import pytest

from data_prep.parallel import open_executor
from data_prep.sharding import decompress
from data_prep.sharding.decompress import check_headers, cut_parts, decompress_sources
from data_prep.sharding.sources import Source, find_sources, source_info
from dnabert_rm.utils.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("yeast.fa.gz", "fly.fasta", "man.chr1.fna.bgz", "plain"):
        (tmp_path / name).write_text(">a\nACGT\n")
    return tmp_path


def test_a_genome_is_named_after_its_file_or_by_the_user(folder: Path) -> None:
    files = ["yeast.fa.gz", "fly.fasta", "man.chr1.fna.bgz", "plain", "worm=fly.fasta"]
    named = [item if "=" not in item else f"worm={folder / 'fly.fasta'}" for item in files]
    sources = find_sources([str(folder / item) if "=" not in item else item for item in named])
    assert [source.genome for source in sources] == ["yeast", "fly", "man.chr1", "plain", "worm"]


def test_paths_in_a_list_file_are_relative_to_its_folder(folder: Path) -> None:
    (folder / "list.txt").write_text(f"# genomes\n\nfly.fasta\n  man=man.chr1.fna.bgz  \n{folder / 'plain'}\n")
    sources = find_sources([], str(folder / "list.txt"))
    assert [(source.genome, Path(source.path).name) for source in sources] == [
        ("fly", "fly.fasta"),
        ("man", "man.chr1.fna.bgz"),
        ("plain", "plain"),
    ]
    assert all(Path(source.path).exists() for source in sources)


def test_files_share_a_genome_only_if_all_name_it(folder: Path) -> None:
    one, two = str(folder / "fly.fasta"), str(folder / "plain")
    assert [source.genome for source in find_sources([f"g={one}", f"g={two}"])] == ["g", "g"]
    for files in ([one, one], [one, f"fly={two}"], [f"fly={two}", one]):
        with pytest.raises(ConfigError, match="genome name 'fly' is already used by"):
            find_sources(files)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no FASTA file"),
        (["absent.fa"], "absent.fa: no such file"),
        (["/"], "is a folder"),
        (["g=absent"], "absent: no"),
    ],
)
def test_a_missing_file_or_a_folder_is_named(files: list[str], said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        find_sources(files)


def test_a_file_name_that_is_not_a_valid_genome_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my genome.fa").write_text(">a\nACGT\n")
    with pytest.raises(ConfigError, match="'my genome' is not a valid genome name; write NAME="):
        find_sources([str(tmp_path / "my genome.fa")])


@pytest.mark.parametrize(
    "content",
    [
        "\ufefffly.fasta\nplain\n".encode(),
        b"fly.fasta\r\nplain\r\n",
        b"# g\xe9nomes\nfly.fasta\n#\xff\nplain",
        b"\xef\xbb\xbf# one\nfly.fasta\nplain",
    ],
)
def test_encodings_and_line_ends_of_a_list_file(folder: Path, content: bytes) -> None:
    (folder / "list.txt").write_bytes(content)
    sources = find_sources([], str(folder / "list.txt"))
    assert [Path(source.path).name for source in sources] == ["fly.fasta", "plain"]


def test_a_path_in_a_list_file_has_the_bytes_of_the_file_system(folder: Path) -> None:
    name = b"g\xe9nome.fa"
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(">a\nACGT\n")
    (folder / "list.txt").write_bytes(b"latin=" + name + b"\n")
    assert os.fsencode(find_sources([], str(folder / "list.txt"))[0].path).endswith(name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b">a\nACGT\n"), "list.txt: is a FASTA or gzip file, not a list of paths"),
        (b">a\nACGT\n", "list.txt: is a FASTA or gzip file, not a list of paths"),
        ("fly.fasta\n".encode("utf-16"), "list.txt: is text in UTF-16"),
        (b"BZh91AY", "list.txt: is compressed with bzip2"),
        (b"absent\xe9.fa\n", "no such file"),
        (b"# nothing\n\n", "no FASTA file"),
    ],
)
def test_a_wrong_list_file_is_named(folder: Path, content: bytes, said: str) -> None:
    (folder / "list.txt").write_bytes(content)
    with pytest.raises((ConfigError, DataError), match=said):
        find_sources([], str(folder / "list.txt"))


def test_a_pipe_or_a_device_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match="fifo: is a pipe, but each FASTA is read several times; write the data to"):
        find_sources([str(tmp_path / "fifo")])
    with pytest.raises(DataError, match="/dev/null: is a device or socket"):
        find_sources(["/dev/null"])


def test_an_equals_sign_in_a_path_is_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "k=6.fa").write_text(">a\nACGT\n")
    with pytest.raises(ConfigError, match="is not a valid genome name"):
        find_sources([str(tmp_path / "k=6.fa")])
    assert find_sources([f"six={tmp_path / 'k=6.fa'}"])[0].genome == "six"
    (tmp_path / "k=1").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("k=1/missing.fa", "k=2/missing.fa"):  # only the first is in a folder
        with pytest.raises(DataError, match=f"^{name if name[2] == '1' else name[2:]}: no such file"):
            find_sources([name])


def test_checksum_and_size_are_those_of_the_file_on_disk(folder: Path) -> None:
    import hashlib

    info = source_info(Source("g", str(folder / "plain")))
    assert (info.file, info.bytes) == ("plain", 8)
    assert info.sha256 == hashlib.sha256(b">a\nACGT\n").hexdigest()


CONTENT = b">a\n" + bytes(np.random.default_rng(0).choice(list(b"ACGT"), 700_000)) + b"\n"


@pytest.fixture(scope="module")
def compressed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bytes plain, as gzip (one and two members), and as bgzip."""
    folder = tmp_path_factory.mktemp("compressed")
    (folder / "plain").write_bytes(CONTENT)
    (folder / "gzip").write_bytes(gzip.compress(CONTENT, 1))
    (folder / "two").write_bytes(gzip.compress(CONTENT[:1000], 1) + gzip.compress(CONTENT[1000:], 1))
    pysam.tabix_compress(str(folder / "plain"), str(folder / "bgzip"), force=True)
    return folder


@pytest.fixture
def compressed(compressed_once: Path, tmp_path: Path) -> dict[str, Path]:
    return {path.name: Path(shutil.copy(path, tmp_path)) for path in compressed_once.iterdir()}


def decompressed(path: Path, scratch: Path) -> bytes:
    scratch.mkdir(exist_ok=True)
    with open_executor(1) as executor:
        assert executor is not None
        made = decompress_sources([Source("g", str(path))], scratch, executor)
    assert not list(scratch.glob("*.tmp"))
    return Path(made[0] if made else path).read_bytes()


@pytest.mark.parametrize("name", ["plain", "gzip", "two", "bgzip"])
def test_every_compression_gives_the_same_bytes(compressed: dict[str, Path], tmp_path: Path, name: str) -> None:
    assert decompressed(compressed[name], tmp_path / "scratch") == CONTENT


def test_bgzip_is_decompressed_in_independent_parts(compressed: dict[str, Path], tmp_path: Path) -> None:
    with patch.object(decompress, "_PART_BYTES", 100_000):
        parts = cut_parts(str(compressed["bgzip"]), "x")
        assert len(parts) > 4 and sum(part.size or 0 for part in parts) == len(CONTENT)
        assert decompressed(compressed["bgzip"], tmp_path / "scratch") == CONTENT
    assert [part.size for part in cut_parts(str(compressed["gzip"]), "x")] == [None]


def test_a_file_decompressed_earlier_is_reused(compressed: dict[str, Path], tmp_path: Path) -> None:
    decompressed(compressed["gzip"], tmp_path / "scratch")
    (tmp_path / "scratch" / "source-0.fa").write_bytes(b"before")
    assert decompressed(compressed["gzip"], tmp_path / "scratch") == b"before"


@pytest.mark.parametrize("name", ["gzip", "bgzip"])
@pytest.mark.parametrize("cut", [0.5, 0.9, -8, -1])
def test_a_truncated_file_is_reported(
    compressed: dict[str, Path], tmp_path: Path, name: str, cut: float, capfd: pytest.CaptureFixture[str]
) -> None:
    data = compressed[name].read_bytes()
    compressed[name].write_bytes(data[: int(len(data) * cut)] if cut > 0 else data[: int(cut)])
    with pytest.raises(DataError, match=f"{name}: the gzip data are damaged or end too early"):
        decompressed(compressed[name], tmp_path / "scratch")
    assert capfd.readouterr().err == ""


def test_bgzip_without_its_end_block_is_read_with_a_warning(
    compressed: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compressed["bgzip"].write_bytes(compressed["bgzip"].read_bytes()[:-28])
    assert decompressed(compressed["bgzip"], tmp_path / "scratch") == CONTENT
    assert "bgzip: has no bgzip end block" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gzip", "bgzip"])
def test_padding_is_skipped_and_trailing_data_named(compressed: dict[str, Path], tmp_path: Path, name: str) -> None:
    data = compressed[name].read_bytes()
    compressed[name].write_bytes(data + bytes(512))
    assert decompressed(compressed[name], tmp_path / "padded") == CONTENT
    compressed[name].write_bytes(data + b"-- \n")
    with pytest.raises(DataError, match=f"trailing data after its gzip data; keep only the first {len(data)} bytes"):
        decompressed(compressed[name], tmp_path / "trailing")


@pytest.mark.parametrize("name", ["gzip", "bgzip"])
def test_a_damaged_compressed_file_is_reported(compressed: dict[str, Path], tmp_path: Path, name: str) -> None:
    data = bytearray(compressed[name].read_bytes())
    data[len(data) // 2] ^= 0xFF
    compressed[name].write_bytes(data)
    with pytest.raises(DataError, match=f"{name}: the gzip data are damaged"):
        decompressed(compressed[name], tmp_path / "scratch")


def test_a_file_that_is_not_fasta_is_refused_early(tmp_path: Path) -> None:
    for name, data in {"csv": b"sequence,label\n", "csv.gz": gzip.compress(b"sequence,label\n"), "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            check_headers([Source("g", str(tmp_path / name))])
