"""The format of a prepared folder: `manifest.json`, the names of shard members and the data's fingerprint.

A prepared folder holds `manifest.json`, `columns.npz` (`data/columns.py`) and the shards that the manifest names. A
shard is a tar, written by webdataset. It holds segments, which are contiguous parts of contigs, in pairs of members:
`KEY.ids.npy` (1-D uint16 or uint32 token ids of one or several segments, one after the other) and `KEY.json` (`genome`
and `split`, and lists of the segments' `contig, start, end, tokens`). `start` and `end` are 0-based half-open positions
in bases. See `docs/data.md` for the full description.

Folders of format version 1 are read, too. They hold one segment per pair of members, no lists, and no `columns.npz`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.data.columns import (
    COLUMNS_NAME,
    CONTIG_COLUMNS,
    ColumnFile,
    ColumnInfo,
    ContigInfo,
    ContigTable,
    is_left_out,
    write_columns,
)
from dnabert_rm.genome.kmer import BASE_ORDER, vocab_size
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import write_text

FORMAT = "dnabert_rm-shards"
FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "val", "test")
_SEGMENT_TOKENS = "segment_tokens"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INVALID = (ValueError, TypeError, KeyError, AttributeError)
"""Exceptions of `parse_manifest` for an invalid manifest."""


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer that produced the ids. `kind` is "kmer" or "bpe". `model` is the file name of a BPE model."""

    kind: str
    vocab_size: int
    k: int | None = None
    base_order: str | None = BASE_ORDER
    model: str | None = None
    model_sha256: str | None = None


@dataclass(frozen=True)
class SourceInfo:
    """One input file: name of its genome, file name without folder, size and SHA-256."""

    genome: str
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardInfo:
    """One shard: its file name, split, size, SHA-256, and the number of tokens in each segment, (S,) int64."""

    name: str
    split: str
    bytes: int
    sha256: str
    segments: NDArray[np.int64] = field(compare=False)

    @property
    def tokens(self) -> int:
        """Number of tokens in the whole shard."""
        return int(self.segments.sum())

    def to_json(self) -> dict[str, Any]:
        """Return the content that `from_json` reads."""
        return {**_facts(self), "segments": self.segments.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ShardInfo:
        """Return the shard with this content. Raises ValueError or TypeError if it is invalid."""
        segments = np.array(content["segments"] or np.zeros(0, np.int64))
        if segments.dtype != np.int64 or segments.ndim != 1:
            raise ValueError(f"shard {content['name']} has a segment length that is not a positive integer")
        return cls(**{**content, "segments": segments})


@dataclass(frozen=True)
class Manifest:
    """The content of a prepared folder. `options` are the build options that change the shards' bytes.

    `fingerprint` is the SHA-256 of `manifest.json`. It is empty as long as the manifest isn't written. Folders with the
    same fingerprint hold the same data, because the manifest holds checksums of all other files' contents.
    """

    tokenizer: TokenizerInfo
    sources: list[SourceInfo]
    contigs: ContigTable
    shards: list[ShardInfo]
    options: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    format_version: int = FORMAT_VERSION

    def shards_of(self, split: str) -> list[ShardInfo]:
        """Return the shards of one split, in order. Raises `DataError` if the split has none."""
        found = [shard for shard in self.shards if shard.split == split]
        if not found:
            have = ", ".join(sorted({shard.split for shard in self.shards})) or "none"
            fix = f"build with --{split}-contigs or --{split}-fraction" if split in SPLITS[1:] else "hold out less"
            if split not in SPLITS:
                fix = "choose another split"
            raise DataError(f"no shards for split {split!r} (the data has: {have}); {fix}")
        return found


def segment_keys(start: int = 0) -> Iterator[str]:
    """Yield an endless sequence of segment keys, from number `start` on: "0000000", "0000001", …"""
    while True:
        yield f"{start:07d}"
        start += 1


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write `columns.npz` and `manifest.json`, in this order and atomically. Return the manifest with its fingerprint.

    Equal manifests give identical text.
    """
    segments = [shard.segments for shard in manifest.shards] or [np.zeros(0, np.int64)]
    infos = write_columns(folder, {_SEGMENT_TOKENS: np.concatenate(segments), **manifest.contigs.columns})
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tokenizer": asdict(manifest.tokenizer),
        "sources": [asdict(source) for source in manifest.sources],
        "genomes": manifest.contigs.genomes,
        "columns": {name: asdict(info) for name, info in infos.items()},
        "shards": [{**_facts(shard), "segments": len(shard.segments)} for shard in manifest.shards],
        "options": manifest.options,
    }
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_text(folder / MANIFEST_NAME, text)
    return dataclasses.replace(manifest, fingerprint=fingerprint_of(text.encode()), format_version=FORMAT_VERSION)


def _facts(shard: ShardInfo) -> dict[str, Any]:
    return {"name": shard.name, "split": shard.split, "bytes": shard.bytes, "sha256": shard.sha256}


def fingerprint_of(text: bytes) -> str:
    """Return the fingerprint of the data with this `manifest.json`."""
    return hashlib.sha256(text).hexdigest()


def load_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read and check `folder/manifest.json`. Raises a `DataError` that names the fault.

    Shard names must be plain file names, so a manifest can't point outside its folder.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; pass a folder that `python -m data_prep build` completed") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: is a file; pass a folder that `python -m data_prep build` completed") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); build the data again") from None
    columns = Path(folder) / COLUMNS_NAME
    return parse_manifest(text, str(path), lambda: (columns, str(columns)), "build the data again")


def parse_manifest(text: bytes, shown: str, columns: Callable[[], tuple[Path | bytes, str]], advice: str) -> Manifest:
    """Return the manifest in `text`. Raises `DataError` if it is invalid.

    Args:
        text: Content of `manifest.json`.
        shown: The file's name in messages.
        columns: Function that returns `columns.npz`, as its path or content, and its name in messages. It is called
            unless the folder has format version 1.
        advice: What a message tells the user to do.
    """
    try:
        content = json.loads(text.decode())
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        version = content.pop("format_version")
        if version not in (1, FORMAT_VERSION):
            raise ValueError(f"format version {version} is not supported, only versions up to {FORMAT_VERSION}")
        contigs, shards = _version_1(content) if version == 1 else _version_2(content, columns)
        manifest = Manifest(
            tokenizer=TokenizerInfo(**content.pop("tokenizer")),
            sources=[SourceInfo(**item) for item in content.pop("sources")],
            contigs=contigs,
            shards=shards,
            options=content.pop("options"),
            fingerprint=fingerprint_of(text),
            format_version=version,
        )
        if content:
            raise ValueError(f"unknown key {sorted(content)[0]!r}")
        _check_tokenizer(manifest.tokenizer)
        for shard in manifest.shards:
            _check_shard(shard)
        if len({shard.name for shard in manifest.shards}) != len(manifest.shards):
            raise ValueError("two shards have the same name")
        return manifest
    except _INVALID as error:
        raise DataError(f"{shown}: not a valid manifest ({error}); {advice}") from None


def _version_1(content: dict[str, Any]) -> tuple[ContigTable, list[ShardInfo]]:
    """Take the contigs and shards out of a manifest of format version 1."""
    contigs = ContigTable.from_rows([ContigInfo(**item) for item in content.pop("contigs")])
    return contigs, [ShardInfo.from_json(item) for item in content.pop("shards")]


def _version_2(
    content: dict[str, Any], columns: Callable[[], tuple[Path | bytes, str]]
) -> tuple[ContigTable, list[ShardInfo]]:
    """Take the contigs and shards out of a manifest of format version 2."""
    infos = {name: ColumnInfo(**info) for name, info in content.pop("columns").items()}
    if not all(type(info.rows) is int and info.rows >= 0 for info in infos.values()):
        raise ValueError("its columns have numbers of rows that are not integers")
    if len({infos[name].rows for name in (*CONTIG_COLUMNS, *filter(is_left_out, infos))}) != 1:
        raise ValueError("its columns of contigs have different lengths")
    file = ColumnFile(*columns(), infos)
    tokens = file[_SEGMENT_TOKENS]
    items = content.pop("shards")
    ends = np.cumsum([0, *(int(item["segments"]) for item in items)])
    if ends[-1] != len(tokens):
        raise ValueError(f"its shards have {ends[-1]} segments, and {COLUMNS_NAME} has {len(tokens)}")
    if (np.diff(ends) < 1).any():
        raise ValueError("it has a shard without segments")
    slices = zip(items, ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    shards = [ShardInfo(**{**item, "segments": tokens[first:last]}) for item, first, last in slices]
    genomes = content.pop("genomes")
    if not all(isinstance(genome, str) for genome in genomes):
        raise ValueError("the name of a genome is not a string")
    return ContigTable(genomes, file), shards


def file_names(text: bytes) -> list[str]:
    """Return the names of the other files that belong to a manifest, without those that an invalid manifest can't give.

    Only names that can't point outside the folder are returned.
    """
    try:
        content = json.loads(text)
        model = content["tokenizer"].get("model")
        names = [str(item["name"]) for item in content["shards"]]
    except _INVALID:
        return []
    others = [COLUMNS_NAME] if "columns" in content else []
    others += [model] if isinstance(model, str) and Path(model).name == model else []
    return [*filter(_SAFE_NAME.fullmatch, names), *others]


def _check_tokenizer(tokenizer: TokenizerInfo) -> None:
    if tokenizer.kind not in ("kmer", "bpe"):
        raise ValueError(f"unknown tokenizer kind {tokenizer.kind!r}, neither kmer nor bpe")
    if tokenizer.kind == "kmer":
        if tokenizer.base_order != BASE_ORDER or not isinstance(tokenizer.k, int) or not 3 <= tokenizer.k <= 8:
            raise ValueError("a k-mer tokenizer needs k from 3 to 8 and the base order ATCG")
        if tokenizer.vocab_size != vocab_size(tokenizer.k):
            raise ValueError(f"vocab_size {tokenizer.vocab_size} does not match {tokenizer.k}-mers")
    if tokenizer.model is not None and Path(tokenizer.model).name != tokenizer.model:
        raise ValueError("the tokenizer's model must be a plain file name")


def _check_shard(shard: ShardInfo) -> None:
    if not _SAFE_NAME.fullmatch(shard.name):
        raise ValueError(f"shard name {shard.name!r} is not a plain file name that ends in .tar")
    if shard.split not in SPLITS:
        raise ValueError(f"shard {shard.name} has the unknown split {shard.split!r}")
    if not _SHA256.fullmatch(shard.sha256):
        raise ValueError(f"the sha256 of shard {shard.name} is not 64 lower-case hexadecimal digits")
    if len(shard.segments) and shard.segments.min() < 1:
        raise ValueError(f"shard {shard.name} has a segment length that is not a positive integer")
