"""One shard: read its segments' bases, make their ids, write the tar with webdataset, all or nothing."""

from __future__ import annotations

from dnabert_rm.utils.files import atomic_file

from dnabert_rm.patches.webdataset_patches import make_tar_writer

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
import numpy as np
from numpy.typing import NDArray
from data_prep.build.encode import make_encoder
from data_prep.build.options import BuildOptions
from data_prep.build.shard_plan import ShardPlan
from dnabert_rm.genome.contigs import RegionReaders
from dnabert_rm.genome.fasta_scan import true_runs
from dnabert_rm.data.manifest import ShardInfo, segment_keys
from dnabert_rm.utils.files import write_text







@dataclass(frozen=True)
class ContigRef:
    """A contig's names, and the file that holds it (`shown` is its name in messages)."""

    genome: str
    name: str
    path: str
    shown: str


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to write one shard into `folder`, its temporary files into `scratch`."""

    shard: ShardPlan
    contigs: dict[int, ContigRef]
    options: BuildOptions
    folder: str
    scratch: str
    bpe_model: str | None = None


def write_shard(task: ShardTask) -> ShardInfo:
    """Write one shard and, when it stands under its name, its `ShardInfo` into the scratch folder.

    The shard appears by a rename after fsync, so it is whole or absent; where writing fails
    (`OSError`), nothing half-written is left behind.
    """
    temporary = Path(task.scratch) / f"{task.shard.name}.{os.getpid()}.tmp"
    with atomic_file(Path(task.folder) / task.shard.name, temporary), open(temporary, "wb", buffering=0) as raw:
        out = _HashingFile(raw)
        lengths = _write_tar(out, task)
    info = ShardInfo(task.shard.name, task.shard.split, out.bytes, out.sha256.hexdigest(), lengths)
    write_text(sidecar(task.scratch, info.name), json.dumps(asdict(info)))
    return info


def sidecar(scratch: str | Path, shard_name: str) -> Path:
    """Where a finished shard's `ShardInfo` lies until the manifest is written."""
    return Path(scratch) / f"{shard_name}.json"


def _write_tar(out: _HashingFile, task: ShardTask) -> list[int]:
    """Write every segment of the shard; returns their tokens."""
    writer, keys, lengths = make_tar_writer(out), segment_keys(task.shard.first_key), []
    encode = make_encoder(task.options, task.bpe_model)
    for meta, letters in _read_segments(task):
        for strand, ids in encode(letters):
            content = meta if strand is None else {**meta, "strand": strand}
            writer.write({"__key__": next(keys), "ids.npy": npy_bytes(ids), "json": json_bytes(content)})
            lengths.append(len(ids))
    writer.close()
    return lengths


def _read_segments(task: ShardTask) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """The JSON member and the letters of every segment of a shard, in order."""
    segments, split = task.shard.segments, task.shard.split
    columns = (segments.contig, segments.start, segments.end, segments.anchor_byte, segments.anchor_base)
    with RegionReaders() as readers:
        for number, start, end, *anchor in np.stack(columns, axis=1).tolist():
            contig = task.contigs[number]
            letters = readers.of(contig.path, contig.shown).read(number, start, end, (anchor[0], anchor[1]))
            meta = {"genome": contig.genome, "contig": contig.name, "start": start, "end": end, "split": split}
            if task.options.record_soft_mask:
                meta["soft_masked"] = (true_runs(letters >= ord("a")) + start).tolist()
            yield meta, letters


def npy_bytes(ids: NDArray) -> bytes:
    """The `.npy` file of a 1-D array, made with one copy."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(ids))
    return b"".join([header.getvalue(), ids.data])


def json_bytes(content: dict[str, Any]) -> bytes:
    """The JSON member: sorted keys, so that the same content gives the same bytes."""
    return json.dumps(content, sort_keys=True).encode()


class _HashingFile:
    """A file that keeps the SHA-256 and the number of the bytes written to it."""

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
