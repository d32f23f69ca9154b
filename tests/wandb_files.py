"""Reader of the files that wandb writes in offline mode: records in LevelDB's log format.

Format: https://github.com/google/leveldb/blob/main/doc/log_format.md, after a header of seven bytes.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK_BYTES = 32768
HEADER = struct.Struct("<IHB")
LAST_PARTS = (1, 4)
"""Types of a chunk that ends a record: a whole record, and the last of several chunks."""


def wandb_files(run: Path) -> list[Path]:
    """Return the files of a run folder, oldest first."""
    return sorted((run / "wandb").glob("offline-run-*/*.wandb"))


def read_records(path: Path, seconds: float = 20.0) -> list[Record]:
    """Return the records of a file whose run has ended.

    wandb's own process writes the file, and completes it soon after `finish()` has returned.
    """
    deadline = time.monotonic() + seconds
    while True:
        records = list(_records_so_far(path))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < deadline, f"{path}: {len(records)} records and no end of the run"
        time.sleep(0.1)


def _records_so_far(path: Path) -> Iterator[Record]:
    content, position, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while position + HEADER.size <= len(content):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < HEADER.size:  # padding
            position += left
            continue
        _, length, kind = HEADER.unpack_from(content, position)
        position += HEADER.size
        parts += content[position : position + length]
        position += length
        if kind in LAST_PARTS:
            yield Record.FromString(parts)
            parts = b""


def logged_rows(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the logged values of a file, by tag, and their steps."""
    rows = []
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            step = values.pop("_step")
            rows.append((step, {tag: value for tag, value in values.items() if not tag.startswith("_")}))
    return rows


def run_ids(path: Path) -> set[str]:
    """Return the ids of the runs in a file."""
    return {record.run.run_id for record in read_records(path) if record.WhichOneof("record_type") == "run"}


def projects(path: Path) -> set[str]:
    """Return the projects of the runs in a file."""
    return {record.run.project for record in read_records(path) if record.WhichOneof("record_type") == "run"}


def parameters(path: Path) -> dict[str, dict]:
    """Return the run's configuration in a file."""
    return {
        item.key: json.loads(item.value_json)
        for record in read_records(path)
        if record.WhichOneof("record_type") == "run"
        for item in record.run.config.update
        if item.key
    }
