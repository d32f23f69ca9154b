"""The format of a prepared folder: `manifest.json`, the names of shard members and the data's fingerprint.

A prepared folder holds `manifest.json` and the shards that it names. A shard is a tar, written by webdataset. It
holds segments, which are contiguous parts of contigs. Each segment has two members: `KEY.ids.npy` (1-D uint16 or uint32
token ids) and `KEY.json` (`genome, contig, start, end, split`). `start` and `end` are 0-based half-open positions in
bases. See `docs/data_format.md` for the full description.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dnabert_rm.genome.kmer import BASE_ORDER, vocab_size
from dnabert_rm.utils.errors import DataError

FORMAT = "dnabert_rm-shards"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "val", "test")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
class ContigInfo:
    """One FASTA record.

    `length` is in bases. `tokens` is the number of stored tokens. `left_out` maps each reason for leaving bases out to
    the number of bases.
    """

    genome: str
    contig: str
    length: int
    tokens: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class ShardInfo:
    """One shard: its file name, split, size, SHA-256, and the number of tokens in each segment, in order."""

    name: str
    split: str
    bytes: int
    sha256: str
    segments: list[int]

    @property
    def tokens(self) -> int:
        """Number of tokens in the whole shard."""
        return sum(self.segments)


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. `options` are the build options that change the shards' bytes."""

    tokenizer: TokenizerInfo
    sources: list[SourceInfo]
    contigs: list[ContigInfo]
    shards: list[ShardInfo]
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the manifest as JSON text. Equal manifests give identical text."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(content, indent=1, sort_keys=True) + "\n"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest's text. Folders with the same fingerprint hold the same data."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def shards_of(self, split: str) -> list[ShardInfo]:
        """Return the shards of one split, in order. Raises `DataError` if the split has none."""
        found = [shard for shard in self.shards if shard.split == split]
        if not found:
            have = ", ".join(sorted({shard.split for shard in self.shards})) or "none"
            raise DataError(
                f"no shards for split {split!r} (the data has: {have}); choose another split, or build shards for "
                f"{split!r}"
            )
        return found


def segment_keys(start: int = 0) -> Iterator[str]:
    """Yield an endless sequence of segment keys, from number `start` on: "0000000", "0000001", …"""
    while True:
        yield f"{start:07d}"
        start += 1


def load_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read and check `folder/manifest.json`. Raises a `DataError` that names the fault.

    Shard names must be plain file names, so a manifest can't point outside its folder.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; pass a folder that `python -m data_prep build` completed") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: is a file; pass a folder that `python -m data_prep build` completed") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); build the data again") from None
    try:
        return parse_manifest(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not a valid manifest ({error}); build the data again") from None


def parse_manifest(content: dict[str, Any]) -> Manifest:
    """Convert a JSON object to a `Manifest`. Raises ValueError, TypeError or KeyError if the object is invalid."""
    if content.pop("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    version = content.pop("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"format version {version} is not supported, only version {FORMAT_VERSION}")
    manifest = Manifest(
        tokenizer=TokenizerInfo(**content.pop("tokenizer")),
        sources=[SourceInfo(**item) for item in content.pop("sources")],
        contigs=[ContigInfo(**item) for item in content.pop("contigs")],
        shards=[ShardInfo(**item) for item in content.pop("shards")],
        options=content.pop("options"),
    )
    if content:
        raise ValueError(f"unknown key {sorted(content)[0]!r}")
    _check_tokenizer(manifest.tokenizer)
    for shard in manifest.shards:
        _check_shard(shard)
    names = [shard.name for shard in manifest.shards]
    if len(set(names)) != len(names):
        raise ValueError("two shards have the same name")
    return manifest


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
    if not all(isinstance(length, int) and length > 0 for length in shard.segments):
        raise ValueError(f"shard {shard.name} has a segment length that is not a positive integer")
