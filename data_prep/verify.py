"""Command `verify`: check a folder of shards against its manifest, first every shard and then every contig."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.parallel import run_all
from dnabert_rm.data.manifest import ContigInfo, Manifest, ShardInfo, TokenizerInfo, load_manifest, segment_keys
from dnabert_rm.data.shards import Meta, read_segments
from dnabert_rm.genome.bpe_model import load_model, piece_bases
from dnabert_rm.genome.kmer import NUM_SPECIAL, UNK_ID, id_dtype
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import sha256_of_file
from dnabert_rm.utils.progress import progress_bar

_CHUNK_TOKENS = 1 << 15
"""Tokens checked at a time, so that all arrays fit in a core's cache."""


@dataclass(frozen=True)
class StoredSegment:
    """Coordinates, split, number of tokens and strand of one stored segment."""

    start: int
    end: int
    split: str
    tokens: int
    strand: str | None


SegmentsByContig = dict[tuple[str, str], list[StoredSegment]]
"""Segments keyed by (genome, contig)."""


@dataclass(frozen=True)
class ShardCheck:
    """Everything that a worker needs to check one shard."""

    folder: Path
    info: ShardInfo
    first_key: int
    tokenizer: TokenizerInfo
    unk_allowed: bool


def run(folder: Path, executor: Executor) -> int:
    """Run `verify`: print every fault with the name of its shard or contig. Return 1 if there is a fault, else 0."""
    manifest = load_manifest(folder)
    faults = list(find_faults(manifest, folder, executor))
    for fault in faults:
        print(fault)
    if not faults:
        tokens = sum(shard.tokens for shard in manifest.shards)
        print(f"{folder}: {len(manifest.shards)} shards with {tokens:,} tokens match the manifest")
    return 1 if faults else 0


def find_faults(manifest: Manifest, folder: Path, executor: Executor) -> Iterator[str]:
    """Yield a description of every fault. Contigs are checked only if no shard has a fault."""
    tokenizer = manifest.tokenizer
    if tokenizer.model is not None and not _has_model(folder, tokenizer):
        yield f"{tokenizer.model}: is missing, or its checksum does not match the manifest"
        return
    unk_allowed = bool(manifest.options.get("unk_bases"))
    first_keys = itertools.accumulate((len(shard.segments) for shard in manifest.shards), initial=0)
    checks = [
        ShardCheck(folder, shard, first_key, tokenizer, unk_allowed)
        for shard, first_key in zip(manifest.shards, first_keys, strict=False)
    ]
    segments: SegmentsByContig = defaultdict(list)
    has_fault = False
    with progress_bar("verify", sum(shard.tokens for shard in manifest.shards), "base") as bar:
        for index, (fault, found) in run_all(executor, check_shard, checks):
            bar.update(manifest.shards[index].tokens)
            for contig, more in found.items():
                segments[contig] += more
            if fault is not None:
                has_fault = True
                yield fault
    if not has_fault:
        yield from contig_faults(manifest, segments)


def _has_model(folder: Path, tokenizer: TokenizerInfo) -> bool:
    path = folder / str(tokenizer.model)
    return path.is_file() and sha256_of_file(path) == tokenizer.model_sha256


# Checks of one shard


def check_shard(check: ShardCheck) -> tuple[str | None, SegmentsByContig]:
    """Check one shard. Return (None, its segments) if it has no fault, else (description of the first fault, {})."""
    segments: SegmentsByContig = defaultdict(list)
    path = check.folder / check.info.name
    info = check.info
    try:
        if not path.is_file() or path.stat().st_size != info.bytes:
            raise DataError(f"{path}: is missing, or its size differs from the manifest's {info.bytes:,} bytes")
        if sha256_of_file(path) != info.sha256:
            raise DataError(f"{path}: its checksum does not match the manifest")
        ids_check = _IdsCheck(check)
        keys = segment_keys(check.first_key)
        lengths = []
        for key, meta, ids in read_segments(path):
            if key != next(keys) or meta["split"] != info.split:
                raise DataError(
                    f"{path}: segment {key} is out of order, or its split {meta['split']!r} does not match the manifest"
                )
            if (fault := ids_check.fault(ids, meta)) is not None:
                raise DataError(f"{path}: segment {key} {fault}")
            lengths.append(len(ids))
            segment = StoredSegment(meta["start"], meta["end"], meta["split"], len(ids), meta.get("strand"))
            segments[meta["genome"], meta["contig"]].append(segment)
        if lengths != info.segments:
            raise DataError(f"{path}: its segment lengths do not match the manifest")
    except DataError as error:
        return str(error), {}
    return None, dict(segments)


class _IdsCheck:
    """Check of a segment's ids: data type, range, number of bases, and overlap of neighbouring k-mers."""

    def __init__(self, check: ShardCheck) -> None:
        tokenizer = check.tokenizer
        self._k = tokenizer.k
        self._vocab_size = tokenizer.vocab_size
        self._unk_allowed = check.unk_allowed
        self._dtype = id_dtype(self._vocab_size)
        self._piece_bases: NDArray[np.int64] | None = None
        if tokenizer.model is not None:
            self._piece_bases = piece_bases(load_model(check.folder / tokenizer.model))

    def fault(self, ids: NDArray, meta: Meta) -> str | None:
        """Return a description of the first fault in `ids` (T,), or None."""
        bases = meta["end"] - meta["start"]
        if ids.dtype != self._dtype or len(ids) == 0:
            return f"holds {len(ids)} ids of {ids.dtype}, but {self._dtype} is expected"
        if self._k is not None and len(ids) != bases - self._k + 1:
            return f"holds {len(ids)} tokens, but {bases} bases give {bases - self._k + 1}"
        for start in range(0, len(ids), _CHUNK_TOKENS):
            # Chunks overlap by one token, so that neighbours in different chunks are compared too.
            if (fault := self._chunk_fault(ids[start : start + _CHUNK_TOKENS + 1])) is not None:
                return f"{fault} (counted from token {start})"
        if self._piece_bases is not None and self._piece_bases[ids].sum() != bases:
            return f"does not decode to {bases} bases"
        return None

    def _chunk_fault(self, ids: NDArray) -> str | None:
        """Return a description of a fault in consecutive ids, or None.

        A fault is an id out of range, or two neighbouring k-mers that do not overlap.
        """
        # The subtraction is unsigned, so special tokens wrap around to values above every other id.
        numbers = ids - self._dtype.type(NUM_SPECIAL)
        known = numbers[ids != UNK_ID] if self._unk_allowed else numbers
        if len(known) and known.max() >= self._vocab_size - NUM_SPECIAL:
            return f"holds an id outside {NUM_SPECIAL} … {self._vocab_size - 1}"
        if self._k is None:
            return None
        broken = (numbers[:-1] & self._dtype.type(4 ** (self._k - 1) - 1)) != numbers[1:] >> self._dtype.type(2)
        if self._unk_allowed:
            broken &= (ids[:-1] != UNK_ID) & (ids[1:] != UNK_ID)
        return (
            f"has k-mers that do not overlap at tokens {broken.argmax()} and {broken.argmax() + 1}"
            if broken.any()
            else None
        )


# Checks of the contigs


def contig_faults(manifest: Manifest, segments: SegmentsByContig) -> Iterator[str]:
    """Check that segments cover every contig, and yield a description of each fault.

    Every base of a contig must be in segments of exactly one split, or counted as left out.
    """
    k = manifest.tokenizer.k or 1
    strands = {"+", "-"} if manifest.options.get("strand") == "both" else {None}
    for contig in manifest.contigs:
        found = segments.pop((contig.genome, contig.contig), [])
        for strand in strands:
            on_strand = [segment for segment in found if segment.strand == strand]
            on_strand.sort(key=lambda segment: (segment.start, segment.end))
            if (fault := _coverage_fault(contig, on_strand, k)) is not None:
                yield f"{contig.genome}:{contig.contig}: {fault}"
        if sum(segment.tokens for segment in found) != contig.tokens:
            yield f"{contig.genome}:{contig.contig}: its number of tokens differs from the manifest's {contig.tokens:,}"
    for genome, name in segments:
        yield f"{genome}:{name}: has segments, but is not listed in the manifest"


def _coverage_fault(contig: ContigInfo, segments: list[StoredSegment], k: int) -> str | None:
    """Check that segments cover a contig. Return a description of the first fault, or None.

    `segments` are the contig's segments on one strand, sorted by start.
    """
    covered = reached = 0
    for before, segment in zip([None, *segments], segments, strict=False):
        if before is not None:
            if before.split != segment.split and segment.start < before.end:
                return f"{before.split} and {segment.split} both contain bases {segment.start} to {before.end}"
            if segment.start < before.end - k + 1:
                return f"bases {segment.start} to {before.end} are stored twice"
        covered += segment.end - max(segment.start, reached)
        reached = segment.end
    if reached > contig.length:
        return f"a segment ends at {reached:,}, beyond the contig's {contig.length:,} bases"
    left_out = sum(contig.left_out.values())
    if covered + left_out != contig.length:
        return (
            f"{covered:,} bases in segments and {left_out:,} left out do not add up to the contig's "
            f"{contig.length:,} bases"
        )
    return None
