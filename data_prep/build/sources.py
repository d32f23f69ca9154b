"""The input files of a build: which genome each holds, and its checksum."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import check_readable_file
from dnabert_rm.data.manifest import SourceInfo
from dnabert_rm.utils.files import sha256_of_file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SUFFIX = re.compile(r"(\.(fa|fasta|fna|fsa|ffn|seq|txt))?(\.(gz|bgz|bgzf))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One input file: `path` as the user named it, and the genome that it belongs to."""

    genome: str
    path: str


def find_sources(files: Sequence[str], list_file: str | None = None) -> list[Source]:
    """The files of a command line and of a list file (`PATH` or `NAME=PATH` a line, `#` comments).

    A file's genome is NAME, else its name without endings; two files share a genome only where
    both say so. Raises `ConfigError` or `DataError` (missing file) with what to change.
    """
    entries = [(item, Path()) for item in files]
    if list_file is not None:
        check_readable_file(list_file, "a list of FASTA files")
        lines = Path(list_file).read_text(encoding="utf-8").splitlines()
        entries += [(line.strip(), Path(list_file).parent) for line in lines if line.strip() and line.strip()[0] != "#"]
    if not entries:
        raise ConfigError(
            "no FASTA file; name at least one, before flags that take several names, or a list of them with --list"
        )
    sources: list[Source] = []
    implicit: dict[str, str | None] = {}
    for item, folder in entries:
        name, path = _split_name(item, folder)
        check_readable_file(path, "a FASTA file")
        genome = name or _SUFFIX.sub("", Path(path).name)
        if not _NAME.fullmatch(genome):
            raise ConfigError(f"{path}: {genome!r} can't name a genome; write NAME={path} with letters, digits, . _ -")
        if genome in implicit and (not name or implicit[genome] is not None):
            raise ConfigError(
                f"{path}: genome {genome!r} is also that of {implicit[genome] or 'another file'}; write NAME={path}"
            )
        implicit[genome] = None if name else path
        sources.append(Source(genome, path))
    return sources


def _split_name(item: str, folder: Path) -> tuple[str, str]:
    """(NAME, PATH) of `NAME=PATH`, ("", PATH) of a plain path; paths in a list start at its folder."""
    name, equals, path = item.partition("=")
    if not equals or not _NAME.fullmatch(name) or (folder / item).exists():
        name, path = "", item
    return name, str(folder / path)


def source_info(source: Source) -> SourceInfo:
    """Size and SHA-256 of the file as it lies there, compressed or not."""
    path = Path(source.path)
    return SourceInfo(source.genome, path.name, path.stat().st_size, sha256_of_file(path))
