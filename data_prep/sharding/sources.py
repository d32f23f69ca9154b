"""Input files of a build, with their genomes and checksums."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnabert_rm.data.manifest import SourceInfo
from dnabert_rm.genome.compression import GZIP_MAGIC, check_format
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import check_readable_file, check_regular_file, sha256_of_file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SUFFIX = re.compile(r"(\.(fa|fasta|fna|fsa|ffn|seq|txt))?(\.(gz|bgz|bgzf))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One input file: its path as the user gave it, and the genome that it belongs to."""

    genome: str
    path: str


def find_sources(files: Sequence[str], list_file: str | None = None) -> list[Source]:
    """Return the input files named on a command line and in a list file.

    A file is given as `PATH` or `NAME=PATH`. `NAME=PATH` assigns the file to the genome NAME. For `PATH`, the genome is
    the file name without suffixes. Several files can share a genome only if each is given with the same NAME.

    Args:
        files: `PATH` or `NAME=PATH` of each file on the command line.
        list_file: A text file with one `PATH` or `NAME=PATH` per line. Lines that start with `#` are comments.

    Raises `ConfigError` or `DataError`, for example for a missing file.
    """
    entries = [(item, Path()) for item in files]
    if list_file is not None:
        entries += [(entry, Path(list_file).parent) for entry in _list_entries(list_file)]
    if not entries:
        raise ConfigError(
            "no FASTA file given; pass one before any flag that takes several values, or pass --list FILE"
        )
    sources: list[Source] = []
    # For each genome, the file whose name it was derived from; None if the user gave the name.
    derived_from: dict[str, str | None] = {}
    for item, folder in entries:
        name, path = _split_name(item, folder)
        check_readable_file(path, "a FASTA file")
        check_regular_file(path, "each FASTA is read several times")
        genome = name or _SUFFIX.sub("", Path(path).name)
        if not _NAME.fullmatch(genome):
            raise ConfigError(
                f"{path}: {genome!r} is not a valid genome name; write NAME={path} with letters, digits, . _ -"
            )
        if genome in derived_from and (not name or derived_from[genome] is not None):
            other = derived_from[genome] or "another file"
            raise ConfigError(
                f"{path}: genome name {genome!r} is already used by {other}; write NAME={path} with another NAME"
            )
        derived_from[genome] = None if name else path
        sources.append(Source(genome, path))
    return sources


def _list_entries(list_file: str) -> list[str]:
    """Return the lines of a list file, without comments and empty lines.

    Bytes that are not UTF-8 are kept, because file names on Linux may contain such bytes.
    """
    check_readable_file(list_file, "a list of FASTA files")
    content = Path(list_file).read_bytes()
    if content.startswith((GZIP_MAGIC, b">")):
        raise DataError(f"{list_file}: is a FASTA or gzip file, not a list of paths; pass it without --list")
    check_format(content, list_file)
    lines = (line.strip() for line in os.fsdecode(content.removeprefix(codecs.BOM_UTF8)).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _split_name(item: str, folder: Path) -> tuple[str, str]:
    """Return (NAME, PATH) for `NAME=PATH`, and ("", PATH) for a plain path. A relative PATH is joined to `folder`.

    An item in an existing folder, such as `k=1/genome.fa`, is a path.
    """
    name, equals, path = item.partition("=")
    is_path = (folder / item).exists() or ("/" in item and (folder / item).parent.is_dir())
    if not equals or not _NAME.fullmatch(name) or is_path:
        name = ""
        path = item
    return name, str(folder / path)


def source_info(source: Source) -> SourceInfo:
    """Return a file's genome, name, size and SHA-256. For a compressed file, these describe the compressed bytes."""
    path = Path(source.path)
    return SourceInfo(source.genome, path.name, path.stat().st_size, sha256_of_file(path))
