"""`verify`: whether a folder of shards is what its manifest says, shard by shard and as a whole."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.bpe import load_model, piece_bases
from data_prep.parallel import run_all
from dnabert_rm.data.manifest import (
    ContigInfo,
    Manifest,
    ShardInfo,
    TokenizerInfo,
    load_manifest,
    segment_keys,
)
from dnabert_rm.data.shards import Meta, read_segments
from dnabert_rm.genome.kmer import NUM_SPECIAL, UNK_ID, id_dtype
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import sha256_of_file
from dnabert_rm.utils.progress import progress_bar

_PIECE_TOKENS = 1 << 15
"""Checked at a time: what a piece needs stays in a core's cache."""


@dataclass(frozen=True)
class Span:
    """Where one segment lies, and its tokens."""

    start: int
    end: int
    split: str
    tokens: int
    strand: str | None


Spans = dict[tuple[str, str], list[Span]]
"""The segments of each (genome, contig)."""


@dataclass(frozen=True)
class ShardCheck:
    """All that a worker needs to check one shard."""

    folder: Path
    info: ShardInfo
    first_key: int
    tokenizer: TokenizerInfo
    unk_allowed: bool


def run(folder: Path, executor: Executor) -> int:
    """`verify`: print every fault with the name of its shard or contig; returns 1 where there is one."""
    manifest = load_manifest(folder)
    faults = list(find_faults(manifest, folder, executor))
    for fault in faults:
        print(fault)
    if not faults:
        tokens = sum(shard.tokens for shard in manifest.shards)
        print(f"{folder}: {len(manifest.shards)} shards with {tokens:,} tokens are what the manifest says")
    return 1 if faults else 0


def find_faults(manifest: Manifest, folder: Path, executor: Executor) -> Iterator[str]:
    """Every fault of a folder, in words. The whole is looked at only where every shard is right."""
    tokenizer, good = manifest.tokenizer, True
    spans: Spans = defaultdict(list)
    if tokenizer.model is not None and not _has_model(folder, tokenizer):
        yield f"{tokenizer.model}: is missing or has another checksum than in the manifest"
        return
    unk_allowed = bool(manifest.options.get("unk_bases"))
    firsts = itertools.accumulate((len(shard.segments) for shard in manifest.shards), initial=0)
    checks = [
        ShardCheck(folder, shard, first, tokenizer, unk_allowed)
        for shard, first in zip(manifest.shards, firsts, strict=False)
    ]
    with progress_bar("verify", sum(shard.tokens for shard in manifest.shards), "base") as bar:
        for index, (fault, found) in run_all(executor, check_shard, checks):
            bar.update(manifest.shards[index].tokens)
            for contig, more in found.items():
                spans[contig] += more
            if fault is not None:
                good = False
                yield fault
    if good:
        yield from contig_faults(manifest, spans)


def _has_model(folder: Path, tokenizer: TokenizerInfo) -> bool:
    path = folder / str(tokenizer.model)
    return path.is_file() and sha256_of_file(path) == tokenizer.model_sha256


def check_shard(check: ShardCheck) -> tuple[str | None, Spans]:
    """The first fault of one shard in words, or None, and where its segments lie."""
    spans: Spans = defaultdict(list)
    path, info = check.folder / check.info.name, check.info
    try:
        if not path.is_file() or path.stat().st_size != info.bytes:
            raise DataError(f"{path}: is missing or not {info.bytes:,} bytes long, as the manifest says")
        if sha256_of_file(path) != info.sha256:
            raise DataError(f"{path}: has another checksum than in the manifest")
        rule, keys, lengths = _IdRule(check), segment_keys(check.first_key), []
        for key, meta, ids in read_segments(path):
            if key != next(keys) or meta["split"] != info.split:
                raise DataError(f"{path}: segment {key} is out of order or of split {meta['split']!r}")
            if (fault := rule.fault(ids, meta)) is not None:
                raise DataError(f"{path}: segment {key} {fault}")
            lengths.append(len(ids))
            span = Span(meta["start"], meta["end"], meta["split"], len(ids), meta.get("strand"))
            spans[meta["genome"], meta["contig"]].append(span)
        if lengths != info.segments:
            raise DataError(f"{path}: has other segment lengths than in the manifest")
    except DataError as error:
        return str(error), {}
    return None, dict(spans)


class _IdRule:
    """What the ids of one segment must be: of the right type, in range, and those of its many bases."""

    def __init__(self, check: ShardCheck) -> None:
        tokenizer = check.tokenizer
        self._k, self._size, self._unk_allowed = tokenizer.k, tokenizer.vocab_size, check.unk_allowed
        self._dtype = id_dtype(self._size)
        self._piece_bases: NDArray[np.int64] | None = None
        if tokenizer.model is not None:
            self._piece_bases = piece_bases(load_model(check.folder / tokenizer.model))

    def fault(self, ids: NDArray, meta: Meta) -> str | None:
        """What is wrong with `ids` (T,), or None."""
        bases = meta["end"] - meta["start"]
        if ids.dtype != self._dtype or len(ids) == 0:
            return f"holds {len(ids)} ids of {ids.dtype}, but {self._dtype} is expected"
        if self._k is not None and len(ids) != bases - self._k + 1:
            return f"holds {len(ids)} tokens, but {bases} bases make {bases - self._k + 1}"
        for start in range(0, len(ids), _PIECE_TOKENS):
            if (fault := self._piece_fault(ids[start : start + _PIECE_TOKENS + 1])) is not None:
                return f"{fault} (tokens from {start} on)"
        if self._piece_bases is not None and self._piece_bases[ids].sum() != bases:
            return f"does not make {bases} bases"
        return None

    def _piece_fault(self, ids: NDArray) -> str | None:
        """Ids must be in range, and k-mers of neighbouring tokens agree in their k - 1 shared bases."""
        # Unsigned, so that the special tokens wrap round to above every other id.
        numbers = ids - self._dtype.type(NUM_SPECIAL)
        known = numbers[ids != UNK_ID] if self._unk_allowed else numbers
        if len(known) and known.max() >= self._size - NUM_SPECIAL:
            return f"holds an id outside {NUM_SPECIAL} … {self._size - 1}"
        if self._k is None:
            return None
        broken = (numbers[:-1] & self._dtype.type(4 ** (self._k - 1) - 1)) != numbers[1:] >> self._dtype.type(2)
        if self._unk_allowed:
            broken &= (ids[:-1] != UNK_ID) & (ids[1:] != UNK_ID)
        return f"breaks between tokens {broken.argmax()} and {broken.argmax() + 1}" if broken.any() else None


def contig_faults(manifest: Manifest, spans: Spans) -> Iterator[str]:
    """Whether the segments of every contig make it up, each base accounted for and in one split only."""
    k = manifest.tokenizer.k or 1
    strands = {"+", "-"} if manifest.options.get("strand") == "both" else {None}
    for contig in manifest.contigs:
        found = spans.pop((contig.genome, contig.contig), [])
        for strand in strands:
            one = sorted((span for span in found if span.strand == strand), key=lambda span: (span.start, span.end))
            if (fault := _spans_fault(contig, one, k)) is not None:
                yield f"{contig.genome}:{contig.contig}: {fault}"
        if sum(span.tokens for span in found) != contig.tokens:
            yield f"{contig.genome}:{contig.contig}: its segments' tokens are not the {contig.tokens:,} of the manifest"
    for genome, name in spans:
        yield f"{genome}:{name}: has segments, but is no contig of the manifest"


def _spans_fault(contig: ContigInfo, spans: list[Span], k: int) -> str | None:
    """What is wrong with the sorted segments of one strand of a contig, or None."""
    covered = reached = 0
    for before, span in zip([None, *spans], spans, strict=False):
        if before is not None:
            if before.split != span.split and span.start < before.end:
                return f"{before.split} and {span.split} share bases {span.start} to {before.end}"
            if span.start < before.end - k + 1:
                return f"bases {span.start} to {before.end} are stored twice"
        covered += span.end - max(span.start, reached)
        reached = span.end
    if reached > contig.length:
        return f"a segment ends at {reached:,}, beyond its {contig.length:,} bases"
    left_out = sum(contig.left_out.values())
    if covered + left_out != contig.length:
        return f"{covered:,} bases in segments and {left_out:,} left out are not its {contig.length:,} bases"
    return None
