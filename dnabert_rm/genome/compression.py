"""Decompress gzip files, and detect other formats that a user may pass by mistake.

Files are recognized by their first bytes, whatever their name. A gzip file can have any number of members
(independently compressed parts), with zero bytes as padding after a member (RFC 1952). A bgzip file is a gzip file
with small members, and its last member is empty. Every command reads through `GzipStream`, so every command accepts
the same files.
"""

from __future__ import annotations

import io
import zlib
from typing import Any

from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.progress import notice

GZIP_MAGIC = b"\x1f\x8b"
BGZIP_MAGIC = b"\x1f\x8b\x08\x04"
BGZIP_FIELD = b"BC\x02\x00"
"""The extra field of a bgzip member's header, at byte 12; the member's size minus 1 follows it in two bytes."""
_READ_BYTES = 1 << 17
_GZIP_WBITS = 31
_OTHER_FORMATS = (
    (b"\xfd7zXZ\x00", "compressed with xz", "xz -dk"),
    (b"BZh", "compressed with bzip2", "bunzip2 -k"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unzstd"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "unlz4"),
    (b"\x1f\x9d", "compressed with compress", "uncompress"),
    (b"\x5d\x00\x00", "compressed with lzma", "unlzma -k"),
    (b"PK\x03\x04", "a zip archive", "unzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    (b"Rar!", "a rar archive", "unrar x"),
)
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_TAR_MAGIC = slice(257, 262)


def check_format(head: bytes, display_name: str) -> None:
    """Raise `DataError` if a file that begins with `head` is in a known format other than text or gzip."""
    for magic, kind, command in _OTHER_FORMATS:
        if head.startswith(magic):
            raise DataError(f"{display_name}: is {kind}; decompress it first ({command} FILE), or use gzip")
    if head[_TAR_MAGIC] == b"ustar":
        raise DataError(f"{display_name}: is a tar archive; unpack it first (tar -xf FILE)")
    if head.startswith(_UTF16_MARKS):
        raise DataError(f"{display_name}: is text in UTF-16; save it as UTF-8")


class GzipStream(io.RawIOBase):
    """The decompressed content of a gzip or bgzip file.

    A bgzip file without its empty last member may be incomplete. Such a file is read, but a warning is printed.

    Args:
        raw: The compressed file, positioned at the start of a gzip member.
        display_name: The file's name in messages.
        limit: Largest number of decompressed bytes to read; by default all.

    Reading raises `DataError` if the data are damaged, end too early, or are followed by other data.
    """

    def __init__(self, raw: Any, display_name: str, limit: int | None = None) -> None:
        super().__init__()
        self._raw = raw
        self._display_name = display_name
        self._remaining = limit
        self._read_to_end = limit is None
        self._consumed = 0
        self._input = b""
        self._member: Any = None
        self._member_size = 0
        self._is_bgzip = False

    def readable(self) -> bool:
        """Return True, as `io.BufferedReader` requires."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Write the next decompressed bytes into `buffer`. Return their number, or 0 at the end of the data."""
        wanted = len(buffer) if self._remaining is None else min(len(buffer), self._remaining)
        content = b""
        while wanted and not content and self._open_member():
            content = self._decompress(wanted)
        buffer[: len(content)] = content
        if self._remaining is not None:
            self._remaining -= len(content)
        return len(content)

    def _decompress(self, wanted: int) -> bytes:
        """Return at most `wanted` decompressed bytes of the current gzip member, or b"" at the member's end."""
        if not self._input:
            self._input = self._read()
            if not self._input:
                raise DataError(
                    f"{self._display_name}: the gzip data are damaged or end too early; copy or download the file again"
                )
        before = len(self._input)
        try:
            content = self._member.decompress(self._input, wanted)
        except zlib.error:
            raise self._damaged() from None
        self._input = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        self._consumed += before - len(self._input)
        self._member_size += len(content)
        if self._member.eof:
            self._member = None
        return content

    def _damaged(self) -> DataError:
        return DataError(
            f"{self._display_name}: the gzip data are damaged or end too early; copy or download the file again"
        )

    def _open_member(self) -> bool:
        """Begin the next gzip member if the current member has ended. Return False at the end of the file."""
        if self._member is not None:
            return True
        is_first = self._consumed == 0
        if not is_first:
            self._skip_padding()
        while len(self._input) < len(BGZIP_MAGIC) and (more := self._read()):
            self._input += more
        if not self._input:
            if self._is_bgzip and self._member_size:
                warn_no_end_block(self._display_name)
            self._is_bgzip = False
            return False
        if not self._input.startswith(GZIP_MAGIC):
            raise DataError(
                f"{self._display_name}: has trailing data after its gzip data; "
                f"keep only the first {self._consumed} bytes (head -c {self._consumed})"
            )
        if is_first:
            self._is_bgzip = self._read_to_end and self._input.startswith(BGZIP_MAGIC)
        self._member = zlib.decompressobj(_GZIP_WBITS)
        self._member_size = 0
        return True

    def _skip_padding(self) -> None:
        """Skip the zero bytes after a gzip member."""
        self._input = self._input.lstrip(b"\0")
        while not self._input and (more := self._read()):
            self._input = more.lstrip(b"\0")

    def _read(self) -> bytes:
        return self._raw.read(_READ_BYTES)


def warn_no_end_block(display_name: str) -> None:
    """Warn that a bgzip file has no end block (empty last member), so it may be incomplete."""
    notice(f"warning: {display_name}: has no bgzip end block, so it may be incomplete; its complete blocks are read")
