"""Read intervals with name, score and strand from GFF3 and GTF files, and from BED through `intervals.py`.

GFF3: github.com/The-Sequence-Ontology/Specifications (gff3.md). GTF 2.2: mblab.wustl.edu/GTF22.html. Their positions
are 1-based and inclusive; here they become 0-based and half-open.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

import numpy as np

from dnabert_rm.genome.fasta_scan import BLOCK_BYTES
from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.genome.interval_flags import Selection
from dnabert_rm.genome.intervals import Details, Intervals, is_position, parse_score, read_intervals
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.progress import notice

_GFF_NAME = re.compile(r"\.(gff[23]?|gtf)(\.b?gz)?$", re.IGNORECASE)
_GFF_COLUMNS = 8
"""Columns that every line has. The ninth, the attributes, may be missing."""
_GTF_NAME = re.compile(r"\.(gff2|gtf)(\.b?gz)?$", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_GTF_ATTRIBUTE = re.compile(r'\s*(\S+)\s+(?:"([^"]*)"|([^;]*))\s*(?:;|$)')
_SHOWN_TYPES = 8


def is_gff_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has the suffix of a GFF or GTF file."""
    return _GFF_NAME.search(os.fspath(path)) is not None


def read_annotation(path: str | os.PathLike[str], selection: Selection, *, warn: bool = True) -> Intervals:
    """Read the intervals of a BED, narrowPeak, GFF3 or GTF file, plain or gzip, with their details.

    A file is GFF or GTF if its name says so (.gff, .gff3, .gtf), otherwise BED. With `warn`, prints a warning if lines
    of several features are read because nothing was selected.

    Raises `ConfigError` if `selection` is not empty for a BED file, or selects no line. Raises `DataError` with the
    line number for a line that is neither an interval nor a comment.
    """
    if is_gff_file(path):
        return _read_gff(path, selection, warn=warn and selection.takes_all)
    if selection != Selection():
        raise ConfigError(
            f"--feature, --attribute and --name-attribute: apply to GFF and GTF, but {path} is read as BED; "
            "omit them, or name the file .gff or .gtf"
        )
    return read_intervals(path, details=True)


def _read_gff(path: str | os.PathLike[str], selection: Selection, *, warn: bool) -> Intervals:
    numbers: dict[str, int] = {}
    contig, start, end, line = (array("q") for _ in range(4))
    names: list[str] = []
    scores = array("d")
    strands: list[bytes] = []
    found: Counter[str] = Counter()
    contig_name = str if _GTF_NAME.search(os.fspath(path)) else _unescaped  # GTF and GFF 2 have no escapes
    with Input(path, "a GFF or GTF file") as source:
        for number, columns in _rows(source):
            feature = columns[2]
            found[feature] += 1
            attributes = parse_attributes(columns[_GFF_COLUMNS]) if len(columns) > _GFF_COLUMNS else {}
            if not selection.accepts(feature, attributes):
                continue
            contig.append(numbers.setdefault(contig_name(columns[0]), len(numbers)))
            start.append(int(columns[3]) - 1)
            end.append(int(columns[4]))
            line.append(number)
            names.append(selection.name(attributes))
            scores.append(parse_score(columns[5]))
            strands.append(columns[6].encode() if columns[6] in ("+", "-") else b".")
    if not contig:
        raise _nothing_selected(source.display_name, selection, list(found))
    if warn and len(found) > 1:
        notice(
            f"warning: {source.display_name}: without --feature every line is an interval "
            f"({', '.join(f'{feature}: {count:,}' for feature, count in found.most_common(_SHOWN_TYPES))})"
        )
    return Intervals(
        display_name=source.display_name,
        contig_names=list(numbers),
        contig=np.array(contig, dtype=np.int64),
        start=np.array(start, dtype=np.int64),
        end=np.array(end, dtype=np.int64),
        line=np.array(line, dtype=np.int64),
        details=Details(names, np.array(scores), np.array(strands), np.full(len(contig), -1, dtype=np.int64)),
    )


def _rows(source: Input) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield the line number and the columns of each line. The positions are whole numbers, start ≤ end."""
    for number, raw in enumerate(source.text_lines(), 1):
        if raw.startswith((b"##FASTA", b">")):  # the rest of the file holds sequences
            return
        if raw.startswith(b"#") or not raw.strip():
            continue
        text = raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
        columns = text.split("\t")
        if len(raw) >= BLOCK_BYTES or len(columns) < _GFF_COLUMNS:
            raise DataError(
                f"{source.display_name}, line {number}: not GFF or GTF, which have nine columns separated by tabs; "
                "fix the line, or name a BED file .bed"
            )
        first, last = columns[3], columns[4]
        if not (is_position(first) and is_position(last) and 1 <= int(first) <= int(last)):
            raise DataError(
                f"{source.display_name}, line {number}: start {first!r} and end {last!r} must be whole numbers, "
                "with 1 <= start <= end; fix the line"
            )
        yield number, columns


def _nothing_selected(name: str, selection: Selection, features: list[str]) -> ConfigError | DataError:
    if not features:
        return DataError(f"{name}: has no interval; pass a GFF or GTF file with lines of nine columns")
    more = ", …" if len(features) > _SHOWN_TYPES else ""
    wanted = [f"--feature {feature}" for feature in selection.features]
    wanted += [f"--attribute {key}={value}" for key, value in selection.attributes]
    return ConfigError(
        f"{' '.join(wanted)}: no line of {name} fits; its features are {', '.join(features[:_SHOWN_TYPES])}{more}"
    )


def parse_attributes(text: str) -> dict[str, list[str]]:
    """Return the values of each attribute of a GFF3 (`key=value;`) or GTF (`key "value";`) line.

    A GTF line can repeat a key. In GFF3 commas separate values, but some files have commas inside a value. So the
    whole text comes first, and then its parts.
    """
    attributes: dict[str, list[str]] = {}
    if re.match(r"\s*[^\s=;\"]+=", text):
        for part in text.split(";"):
            key, _, value = part.strip().partition("=")
            if key:
                parts = value.split(",") if "," in value else []
                attributes.setdefault(_unescaped(key), []).extend(map(_unescaped, (value, *parts)))
        return attributes
    for key, quoted, plain in _GTF_ATTRIBUTE.findall(text):
        attributes.setdefault(key, []).append(quoted or plain.strip())
    return attributes


def _unescaped(text: str) -> str:
    """Return a GFF3 text without escapes. Tabs and other control characters become blanks, as in a table of names."""
    return _CONTROL.sub(" ", unquote(text))
