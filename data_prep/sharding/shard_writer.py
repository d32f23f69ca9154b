"""Writer of one shard: read the bases of its segments, encode them, and write the tar atomically."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.sharding.encode import make_encoder
from data_prep.sharding.options import BuildOptions
from data_prep.sharding.shard_plan import ShardPlan
from dnabert_rm.data.manifest import ShardInfo, segment_keys
from dnabert_rm.genome.contigs import RegionReaders
from dnabert_rm.genome.fasta_scan import true_runs
from dnabert_rm.patches.webdataset_patches import make_tar_writer
from dnabert_rm.utils.files import atomic_file, write_text


@dataclass(frozen=True)
class ContigRef:
    """Genome and name of a contig, path of its uncompressed FASTA, and file name for messages."""

    genome: str
    name: str
    path: str
    display_name: str


@dataclass(frozen=True)
class ShardTask:
    """Everything that a worker needs to write one shard into `folder`, with temporary files in the folder `scratch`."""

    shard: ShardPlan
    contigs: dict[int, ContigRef]
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
        lengths = _write_tar(out, task)
    info = ShardInfo(task.shard.name, task.shard.split, out.bytes, out.sha256.hexdigest(), lengths)
    write_text(Path(task.scratch) / f"{info.name}.json", json.dumps(asdict(info)))
    return info


def _write_tar(out: _HashingFile, task: ShardTask) -> list[int]:
    """Write all segments of the shard to a tar file. Return the number of tokens in each segment."""
    writer = make_tar_writer(out)
    keys = segment_keys(task.shard.first_key)
    lengths = []
    encode = make_encoder(task.options, task.bpe_model)
    for meta, letters in _read_segments(task):
        for strand, ids in encode(letters):
            content = meta if strand is None else {**meta, "strand": strand}
            writer.write({"__key__": next(keys), "ids.npy": npy_bytes(ids), "json": json_bytes(content)})
            lengths.append(len(ids))
    writer.close()
    return lengths


def _read_segments(task: ShardTask) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """Yield the metadata and the letters of each segment in a shard, in order."""
    segments = task.shard.segments
    columns = (segments.contig, segments.start, segments.end, segments.anchor_byte, segments.anchor_base)
    with RegionReaders() as readers:
        for number, start, end, anchor_byte, anchor_base in np.stack(columns, axis=1).tolist():
            contig = task.contigs[number]
            reader = readers.of(contig.path, contig.display_name)
            letters = reader.read(number, start, end, (anchor_byte, anchor_base))
            meta: dict[str, Any] = {
                "genome": contig.genome,
                "contig": contig.name,
                "start": start,
                "end": end,
                "split": task.shard.split,
            }
            if task.options.record_soft_mask:
                meta["soft_masked"] = (true_runs(letters >= ord("a")) + start).tolist()
            yield meta, letters


def npy_bytes(ids: NDArray) -> bytes:
    """Return the content of an `.npy` file for a 1-D array. The array is copied only once."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(ids))
    return b"".join([header.getvalue(), ids.data])


def json_bytes(content: dict[str, Any]) -> bytes:
    """Return a segment's metadata as JSON. Keys are sorted, so that equal content gives equal bytes."""
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
