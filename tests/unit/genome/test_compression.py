"""Decompression of gzip and bgzip, and formats that are refused by name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pysam
import pytest

from dnabert_rm.genome.compression import GzipStream, check_format
from dnabert_rm.utils.errors import DataError

CONTENT = b">a\n" + b"ACGTTGCA" * 40_000 + b"\n"
MEMBER = gzip.compress(CONTENT)
OTHER = gzip.compress(b"GGGG\n")


def decompressed(data: bytes, limit: int | None = None) -> bytes:
    return io.BufferedReader(GzipStream(io.BytesIO(data), "x.gz", limit), 1 << 16).read()


def with_header(flags: int, extra: bytes, mtime: bytes = b"\0\0\0\0") -> bytes:
    """Return the member of `CONTENT` with other header fields (RFC 1952, section 2.3)."""
    return MEMBER[:3] + bytes([flags]) + mtime + MEMBER[8:10] + extra + MEMBER[10:]


ACCEPTED: dict[str, tuple[bytes, bytes]] = {
    "one member": (MEMBER, CONTENT),
    "two members": (MEMBER + OTHER, CONTENT + b"GGGG\n"),
    "a thousand members of one byte": (b"".join(gzip.compress(b"A") for _ in range(1000)), b"A" * 1000),
    "an empty member": (gzip.compress(b""), b""),
    "empty members around": (gzip.compress(b"") + MEMBER + gzip.compress(b""), CONTENT),
    "one zero byte": (MEMBER + b"\0", CONTENT),
    "a block of zeros": (MEMBER + bytes(512), CONTENT),
    "zeros over several reads": (MEMBER + bytes(1 << 19), CONTENT),
    "zeros between members": (MEMBER + bytes(7) + OTHER, CONTENT + b"GGGG\n"),
    "stored, not compressed": (gzip.compress(CONTENT, 0), CONTENT),
    "best compression": (gzip.compress(CONTENT, 9), CONTENT),
    "a file name": (with_header(8, b"genome.fa\0"), CONTENT),
    "a comment": (with_header(16, b"from a sequencer\0"), CONTENT),
    "an extra field": (with_header(4, b"\x06\0XY\x02\0ab"), CONTENT),
    "a time": (with_header(0, b"", b"\x01\x02\x03\x04"), CONTENT),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_gzip_accepts_is_read_whole(name: str, tmp_path: Path) -> None:
    data, content = ACCEPTED[name]
    assert decompressed(data) == content
    assert decompressed(data, 10) == content[:10]
    (tmp_path / "x.gz").write_bytes(data)
    by_gzip = subprocess.run(["gzip", "-dc", tmp_path / "x.gz"], capture_output=True, check=False)
    if name != "zeros between members":  # gzip ignores the second member, with a warning
        assert by_gzip.stdout == content


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (MEMBER[:5], "damaged or end too early"),
        (MEMBER[:200], "damaged or end too early"),
        (MEMBER[:-1], "damaged or end too early"),
        (MEMBER[:-8], "damaged or end too early"),
        (MEMBER + OTHER[:-3], "damaged or end too early"),
        (MEMBER[:-8] + b"\1" * 8, "damaged or end too early"),
        (MEMBER[:100] + b"\xff" + MEMBER[101:], "damaged or end too early"),
        (b"\x1f\x8b\x07" + MEMBER[3:], "damaged or end too early"),
        (MEMBER + b"junk", f"trailing data after its gzip data; keep only the first {len(MEMBER)} bytes"),
        (MEMBER + bytes(9) + b"junk", f"keep only the first {len(MEMBER)} bytes"),
        (MEMBER + b"\x1f", f"keep only the first {len(MEMBER)} bytes"),
        (MEMBER + OTHER + b"\n", f"keep only the first {len(MEMBER) + len(OTHER)} bytes"),
    ],
)
def test_damaged_and_trailing_data_are_named(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=r"^x\.gz: ") as caught:
        decompressed(data)
    assert message in str(caught.value)


def test_bgzip_without_its_end_block_is_read_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    pysam.tabix_compress(str(tmp_path / "x"), str(tmp_path / "x.gz"), force=True)
    data = (tmp_path / "x.gz").read_bytes()
    assert decompressed(data) == CONTENT
    assert capsys.readouterr().err == ""
    assert decompressed(data[:-28]) == CONTENT
    assert capsys.readouterr().err.count("warning: x.gz: has no bgzip end block") == 1


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.fa", content)
    return stream.getvalue()


def tarred(content: bytes) -> bytes:
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("a.fa")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lzma.compress, "compressed with xz; decompress it first (xz -dk FILE)"),
        (lambda content: lzma.compress(content, lzma.FORMAT_ALONE), "compressed with lzma"),
        (bz2.compress, "compressed with bzip2"),
        (lambda content: b"\x28\xb5\x2f\xfd" + content, "compressed with zstd"),
        (lambda content: b"\x04\x22\x4d\x18" + content, "compressed with lz4"),
        (lambda content: b"\x1f\x9d\x90" + content, "compressed with compress"),
        (zipped, "a zip archive; decompress it first (unzip FILE)"),
        (tarred, "a tar archive; unpack it first (tar -xf FILE)"),
        (lambda content: content.decode().encode("utf-16"), "text in UTF-16; save it as UTF-8"),
    ],
)
def test_other_formats_are_named(make: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(DataError, match=r"^x\.fa: is ") as caught:
        check_format(make(CONTENT)[:512], "x.fa")
    assert message in str(caught.value)


def test_text_and_gzip_are_accepted() -> None:
    for head in (b"", b">a\nACGT\n", b"\xef\xbb\xbf>a\n", MEMBER[:512], b"BZ\n", b"##fileformat=VCFv4.3\n"):
        check_format(head, "x.fa")
