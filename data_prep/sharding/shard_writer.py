"""Writer of one shard: read the bases of its segments, encode them, and write the tar atomically."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.sharding.encode import make_encoder
from data_prep.sharding.options import BuildOptions
from data_prep.sharding.shard_plan import Segments, ShardPlan
from dnabert_rm.data.manifest import ShardInfo
from dnabert_rm.genome.contigs import RegionReaders
from dnabert_rm.genome.fasta_scan import true_runs
from dnabert_rm.patches.webdataset_patches import make_tar_writer
from dnabert_rm.utils.files import atomic_file, write_text

_MEMBER_BASES = 1 << 16


@dataclass(frozen=True)
class SourceRef:
    """Genome of an input file, path of the uncompressed FASTA, and file name for messages."""

    genome: str
    path: str
    display_name: str


@dataclass(frozen=True)
class ContigRefs:
    """The C contigs of a shard: `numbers` (C,) ascending indices in the build, `names`, and `sources` (C,) indices."""

    numbers: NDArray[np.int64]
    names: list[str]
    sources: NDArray[np.int64]


@dataclass(frozen=True)
class ShardTask:
    """Everything that a worker needs to write one shard into `folder`, with temporary files in the folder `scratch`."""

    shard: ShardPlan
    contigs: ContigRefs
    sources: list[SourceRef]
    options: BuildOptions
    folder: str
    scratch: str
    bpe_model: str | None = None


def write_shard(task: ShardTask) -> ShardInfo:
    """Write one shard and return its `ShardInfo` (manifest entry).

    The shard is written to a temporary file, flushed to disk and then renamed, so it is complete or absent. If writing
    fails (`OSError`), no partial file is left behind. The `ShardInfo` is also saved in `task.scratch`, for resuming the
    build.
    """
    temporary = Path(task.scratch) / f"{task.shard.name}.{os.getpid()}.tmp"
    with atomic_file(Path(task.folder) / task.shard.name, temporary), open(temporary, "wb", buffering=0) as raw:
        out = _HashingFile(raw)
        lengths = np.array(_write_tar(out, task), dtype=np.int64)
    info = ShardInfo(task.shard.name, task.shard.split, out.bytes, out.sha256.hexdigest(), lengths)
    write_text(Path(task.scratch) / f"{info.name}.json", json.dumps(info.to_json()))
    return info


def _write_tar(out: _HashingFile, task: ShardTask) -> list[int]:
    """Write all segments of the shard to a tar file. Return the number of tokens in each segment."""
    writer = make_tar_writer(out)
    lengths: list[int] = []
    encode = make_encoder(task.options, task.bpe_model)
    with RegionReaders() as readers:
        for genome, segments in _members(task):
            columns, letters = _read_segments(task, segments, readers)
            ids = list(encode(letters))
            if task.options.strands == 2:
                columns = {name: [value for value in column for _ in range(2)] for name, column in columns.items()}
                columns["strand"] = ["+", "-"] * len(segments)
            columns["tokens"] = [len(part) for part in ids]
            writer.write(
                {
                    "__key__": f"{task.shard.first_key + len(lengths):07d}",
                    "ids.npy": npy_bytes(ids),
                    "json": json_bytes({"genome": genome, "split": task.shard.split, **columns}),
                }
            )
            lengths += columns["tokens"]
    writer.close()
    return lengths


def _members(task: ShardTask) -> Iterator[tuple[str, Segments]]:
    """Yield the genome and segments of each pair of members in a shard, in order.

    Short segments share a pair of members, since each takes two kilobytes and 0.1 ms. They have one genome, and about
    `_MEMBER_BASES` bases.
    """
    segments, contigs = task.shard.segments, task.contigs
    sources = contigs.sources[np.searchsorted(contigs.numbers, segments.contig)]
    genomes = [source.genome for source in task.sources]
    genome = np.array([genomes.index(name) for name in genomes])[sources]
    sizes = segments.end - segments.start
    block = (np.cumsum(sizes) - sizes) // _MEMBER_BASES
    starts = np.flatnonzero((np.diff(block, prepend=-1) != 0) | (np.diff(genome, prepend=-1) != 0)).tolist()
    for first, last in zip(starts, [*starts[1:], len(segments)], strict=True):
        yield genomes[genome[first]], segments.take(slice(first, last))


def _read_segments(
    task: ShardTask, segments: Segments, readers: RegionReaders
) -> tuple[dict[str, list[Any]], list[NDArray[np.uint8]]]:
    """Return the columns of a JSON member, and the letters of each segment."""
    rows = np.searchsorted(task.contigs.numbers, segments.contig)
    sources = task.contigs.sources[rows].tolist()
    table = np.stack(
        [segments.contig, segments.start, segments.end, segments.anchor_byte, segments.anchor_base], axis=1
    )
    letters = []
    for number, (contig, start, end, anchor_byte, anchor_base) in zip(sources, table.tolist(), strict=True):
        source = task.sources[number]
        reader = readers.of(source.path, source.display_name)
        letters.append(reader.read(contig, start, end, (anchor_byte, anchor_base)))
    columns: dict[str, list[Any]] = {
        "contig": [task.contigs.names[row] for row in rows.tolist()],
        "start": segments.start.tolist(),
        "end": segments.end.tolist(),
    }
    if task.options.record_soft_mask:
        masks = (true_runs(part >= ord("a")) for part in letters)
        columns["soft_masked"] = [(mask + start).tolist() for mask, start in zip(masks, columns["start"], strict=True)]
    return columns, letters


def npy_bytes(parts: Sequence[NDArray]) -> bytes:
    """Return the content of an `.npy` file for 1-D arrays, one after the other. The data are copied only once."""
    header = io.BytesIO()
    facts = np.lib.format.header_data_from_array_1_0(parts[0])
    np.lib.format.write_array_header_1_0(header, {**facts, "shape": (sum(map(len, parts)),)})
    return b"".join([header.getvalue(), *(part.data for part in parts)])


def json_bytes(content: dict[str, Any]) -> bytes:
    """Return coordinates of segments as JSON. Keys are sorted, so that equal content gives equal bytes."""
    return json.dumps(content, sort_keys=True).encode()


class _HashingFile:
    """Binary file that computes the SHA-256 and the size of the data written to it."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        view = memoryview(data)
        while len(view):
            view = view[self._raw.write(view) :]
        return len(data)

    def tell(self) -> int:
        return self.bytes
