"""Command `verify`: check a folder of shards against its manifest, first every shard and then every contig."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.parallel import run_all
from dnabert_rm.data.columns import ContigInfo, ContigTable
from dnabert_rm.data.manifest import SPLITS, Manifest, ShardInfo, TokenizerInfo, load_manifest
from dnabert_rm.data.shards import Meta, read_members
from dnabert_rm.genome.bpe_model import load_model, piece_bases
from dnabert_rm.genome.kmer import NUM_SPECIAL, UNK_ID, id_dtype
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import sha256_of_file
from dnabert_rm.utils.progress import progress_bar

_CHUNK_TOKENS = 1 << 15
"""Tokens checked at a time, so that all arrays fit in a core's cache."""


@dataclass(frozen=True, eq=False)
class StoredSegments:
    """S stored segments, as arrays of shape (S,).

    `contig` is an index into `names`, which holds (genome, contig) pairs. `start` and `end` are in bases, `tokens` is
    the number of tokens. `split` is an index into `SPLITS`, and `strand` into `_STRANDS`.
    """

    names: list[tuple[str, str]]
    contig: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    tokens: NDArray[np.int64]
    split: NDArray[np.int64]
    strand: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> StoredSegments:
        """Return the segments with the indices `rows`, in that order."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return StoredSegments(self.names, **columns)


_STRANDS = (None, "+", "-")
_COLUMNS = ("contig", "start", "end", "tokens", "split", "strand")


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
    found: list[StoredSegments] = []
    has_fault = False
    with progress_bar("verify", sum(shard.tokens for shard in manifest.shards), "base") as bar:
        for index, (fault, segments) in run_all(executor, check_shard, checks):
            bar.update(manifest.shards[index].tokens)
            found.append(segments)
            if fault is not None:
                has_fault = True
                yield fault
    if not has_fault:
        yield from contig_faults(manifest, found)


def _has_model(folder: Path, tokenizer: TokenizerInfo) -> bool:
    path = folder / str(tokenizer.model)
    return path.is_file() and sha256_of_file(path) == tokenizer.model_sha256


# Checks of one shard


def check_shard(check: ShardCheck) -> tuple[str | None, StoredSegments]:
    """Check one shard. Return (None, its segments), or (description of the first fault, no segments)."""
    path = check.folder / check.info.name
    info = check.info
    try:
        if not path.is_file() or path.stat().st_size != info.bytes:
            raise DataError(f"{path}: is missing, or its size differs from the manifest's {info.bytes:,} bytes")
        if sha256_of_file(path) != info.sha256:
            raise DataError(f"{path}: its checksum does not match the manifest")
        metas = _check_members(check, path)
        tokens = [meta["tokens"] for meta in metas]
        if tokens != info.segments.tolist():
            raise DataError(f"{path}: its segment lengths do not match the manifest")
    except DataError as error:
        return str(error), _stored_segments([])
    return None, _stored_segments(metas)


def _check_members(check: ShardCheck, path: Path) -> list[Meta]:
    """Return the coordinates and numbers of tokens of a shard's segments. Raises `DataError` for the first fault."""
    ids_check = _IdsCheck(check)
    found: list[Meta] = []
    for key, metas, ids, lengths in read_members(path):
        for meta in metas:
            if key != f"{check.first_key + len(found):07d}" or meta["split"] != check.info.split:
                raise DataError(
                    f"{path}: segment {key} is out of order, or its split {meta['split']!r} does not match the manifest"
                )
            if meta.get("strand") not in _STRANDS:
                raise DataError(f"{path}: segment {key} has the unknown strand {meta['strand']!r}")
        if ids_check.has_fault(ids, metas, lengths):
            number, fault = ids_check.first_fault(ids, metas, lengths)
            raise DataError(f"{path}: segment {check.first_key + len(found) + number:07d} {fault}")
        found += [{**meta, "tokens": length} for meta, length in zip(metas, lengths, strict=True)]
    return found


def _stored_segments(metas: Sequence[Meta]) -> StoredSegments:
    names: dict[tuple[str, str], int] = {}
    rows = [
        (
            names.setdefault((meta["genome"], meta["contig"]), len(names)),
            meta["start"],
            meta["end"],
            meta["tokens"],
            SPLITS.index(meta["split"]),
            _STRANDS.index(meta.get("strand")),
        )
        for meta in metas
    ]
    return StoredSegments(list(names), *np.array(rows, dtype=np.int64).reshape(-1, len(_COLUMNS)).T)


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

    def has_fault(self, ids: NDArray, metas: Sequence[Meta], lengths: Sequence[int]) -> bool:
        """Return whether the ids (T,) of segments with `lengths` tokens have a fault. All are checked together."""
        bases = np.array([meta["end"] - meta["start"] for meta in metas])
        tokens = np.array(lengths)
        if ids.dtype != self._dtype or tokens.min() < 1:
            return True
        if self._k is not None and (tokens != bases - self._k + 1).any():
            return True
        ends = np.cumsum(tokens)
        for start in range(0, len(ids), _CHUNK_TOKENS):
            # Chunks overlap by one token, so that neighbours in different chunks are compared too.
            borders = ends[
                np.searchsorted(ends, start, "right") : np.searchsorted(ends, start + _CHUNK_TOKENS, "right")
            ]
            if self._chunk_fault(ids[start : start + _CHUNK_TOKENS + 1], borders - start - 1) is not None:
                return True
        if self._piece_bases is None:
            return False
        return bool((np.add.reduceat(self._piece_bases[ids], ends - tokens) != bases).any())

    def first_fault(self, ids: NDArray, metas: Sequence[Meta], lengths: Sequence[int]) -> tuple[int, str]:
        """Return the index of the first segment with a fault, and a description. There must be a fault."""
        ends = np.cumsum(lengths).tolist()
        parts = (ids[end - length : end] for end, length in zip(ends, lengths, strict=True))
        faults = (self._fault(part, meta) for part, meta in zip(parts, metas, strict=True))
        return next((number, fault) for number, fault in enumerate(faults) if fault is not None)

    def _fault(self, ids: NDArray, meta: Meta) -> str | None:
        """Return a description of the first fault in a segment's ids (T,), or None."""
        bases = meta["end"] - meta["start"]
        if ids.dtype != self._dtype or len(ids) == 0:
            return f"holds {len(ids)} ids of {ids.dtype}, but {self._dtype} is expected"
        if self._k is not None and len(ids) != bases - self._k + 1:
            return f"holds {len(ids)} tokens, but {bases} bases give {bases - self._k + 1}"
        for start in range(0, len(ids), _CHUNK_TOKENS):
            if (fault := self._chunk_fault(ids[start : start + _CHUNK_TOKENS + 1])) is not None:
                return f"{fault} (counted from token {start})"
        if self._piece_bases is not None and self._piece_bases[ids].sum() != bases:
            return f"does not decode to {bases} bases"
        return None

    def _chunk_fault(self, ids: NDArray, borders: NDArray[np.int64] | None = None) -> str | None:
        """Return a description of a fault in consecutive ids, or None.

        A fault is an id out of range, or two neighbouring k-mers that do not overlap. `borders` are the indices of the
        last tokens of segments, which need not overlap with the next token.
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
        if borders is not None:
            broken[borders[borders < len(broken)]] = False
        return (
            f"has k-mers that do not overlap at tokens {broken.argmax()} and {broken.argmax() + 1}"
            if broken.any()
            else None
        )


# Checks of the contigs


def contig_faults(manifest: Manifest, found: Sequence[StoredSegments]) -> Iterator[str]:
    """Check that segments cover every contig, and yield a description of each fault.

    Every base of a contig must be in segments of exactly one split, or counted as left out. All contigs are checked at
    once. Only those with a fault are then looked at one by one, to describe it.
    """
    contigs = manifest.contigs
    genomes = [contigs.genomes[number] for number in contigs.genome.tolist()]
    numbers = {name: number for number, name in enumerate(zip(genomes, contigs.names, strict=True))}
    unknown = dict.fromkeys(name for part in found for name in part.names if name not in numbers)
    segments = _join(found, numbers)
    strands = (1, 2) if manifest.options.get("strand") == "both" else (0,)
    k = manifest.tokenizer.k or 1
    stored = np.bincount(segments.contig, weights=segments.tokens, minlength=len(contigs)).astype(np.int64)
    is_bad = stored != contigs.tokens
    for strand in strands:
        is_bad |= _has_coverage_fault(contigs, segments.take(np.flatnonzero(segments.strand == strand)), k)
    firsts = np.searchsorted(segments.contig, np.arange(len(contigs) + 1))
    for number in np.flatnonzero(is_bad).tolist():
        mine = segments.take(np.arange(firsts[number], firsts[number + 1]))
        name = f"{genomes[number]}:{contigs.names[number]}"
        for strand in strands:
            on_strand = mine.take(np.flatnonzero(mine.strand == strand))
            if (fault := _coverage_fault(contigs[number], on_strand, k)) is not None:
                yield f"{name}: {fault}"
        if stored[number] != contigs.tokens[number]:
            yield f"{name}: its number of tokens differs from the manifest's {int(contigs.tokens[number]):,}"
    for genome, contig in unknown:
        yield f"{genome}:{contig}: has segments, but is not listed in the manifest"


def _join(found: Sequence[StoredSegments], numbers: Mapping[tuple[str, str], int]) -> StoredSegments:
    """Return the segments of all shards on known contigs, sorted by contig, strand, start and end.

    `contig` is then the contig's value in `numbers`.
    """
    parts = [_stored_segments([])]
    for part in found:
        contig = np.array([numbers.get(name, -1) for name in part.names], dtype=np.int64)[part.contig]
        parts.append(replace(part, contig=contig).take(np.flatnonzero(contig >= 0)))
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    joined = StoredSegments([], **columns)
    return joined.take(np.lexsort((joined.end, joined.start, joined.strand, joined.contig)))


def _has_coverage_fault(contigs: ContigTable, segments: StoredSegments, k: int) -> NDArray[np.bool_]:
    """Return whether `_coverage_fault` describes a fault of each contig, (contigs,).

    `segments` are those of one strand, sorted by contig and start.
    """
    is_first = np.diff(segments.contig, prepend=-1) != 0
    is_last = np.diff(segments.contig, append=-1) != 0
    reached = np.where(is_first, 0, np.roll(segments.end, 1))
    is_bad = np.zeros(len(contigs), dtype=bool)
    shared = ~is_first & (segments.start < reached)
    is_twice = ~is_first & (segments.start < reached - k + 1)
    is_bad[segments.contig[is_twice | (shared & (np.roll(segments.split, 1) != segments.split))]] = True
    is_bad[segments.contig[is_last & (segments.end > contigs.lengths[segments.contig])]] = True
    covered = np.zeros(len(contigs), dtype=np.int64)
    np.add.at(covered, segments.contig, segments.end - np.maximum(segments.start, reached))
    left_out = sum(contigs.left_out.values(), start=np.zeros(len(contigs), dtype=np.int64))
    is_bad |= covered + left_out != contigs.lengths
    return is_bad


def _coverage_fault(contig: ContigInfo, segments: StoredSegments, k: int) -> str | None:
    """Check that segments cover a contig. Return a description of the first fault, or None.

    `segments` are the contig's segments on one strand, sorted by start.
    """
    covered = reached = 0
    before = None
    for start, end, split in zip(segments.start.tolist(), segments.end.tolist(), segments.split.tolist(), strict=True):
        if before is not None:
            if before != split and start < reached:
                return f"{SPLITS[before]} and {SPLITS[split]} both contain bases {start} to {reached}"
            if start < reached - k + 1:
                return f"bases {start} to {reached} are stored twice"
        covered += end - max(start, reached)
        before, reached = split, end
    if reached > contig.length:
        return f"a segment ends at {reached:,}, beyond the contig's {contig.length:,} bases"
    left_out = sum(contig.left_out.values())
    if covered + left_out != contig.length:
        return (
            f"{covered:,} bases in segments and {left_out:,} left out do not add up to the contig's "
            f"{contig.length:,} bases"
        )
    return None
