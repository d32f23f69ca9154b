"""Checkpoint manifest `complete.json`: the files of a checkpoint, each with its size and SHA-256.

The manifest is the last file that is written to a checkpoint, and the first that is checked. Each rank hashes the files
that it wrote, and rank 0 writes all hashes to the manifest.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import flush_to_disk, sha256_of_file, write_text

COMPLETE_NAME = "complete.json"
FORMAT_VERSION = 1
_RANK = re.compile(r"rank_?(\d+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CheckpointLayout:
    """Settings of a run that determine how the tensors of its checkpoints are split into files."""

    world_size: int
    zero_stage: int
    nvme: bool
    """Whether the optimizer's states were offloaded to a disk (ZeRO-Infinity)."""


@dataclass(frozen=True)
class CheckpointManifest:
    """Content of `complete.json`: the layout, and a map from each file's relative path to (size in bytes, SHA-256)."""

    layout: CheckpointLayout
    files: dict[str, tuple[int, str]]

    @property
    def num_bytes(self) -> int:
        """Total size of the checkpoint's files in bytes."""
        return sum(size for size, _ in self.files.values())


def is_own_file(name: str, rank: int, world_size: int) -> bool:
    """Return whether `rank` has to hash the file `name`.

    If the file name contains a rank r, rank r % `world_size` hashes the file. Rank 0 hashes all other files.
    """
    writer = _RANK.search(name)
    return (int(writer[1]) if writer else 0) % world_size == rank


def hash_own_files(folder: Path, rank: int, world_size: int) -> dict[str, tuple[int, str]]:
    """Flush and hash the files in `folder` that `is_own_file` assigns to `rank`.

    Return a map from file name to (size in bytes, SHA-256).
    """
    names = [name for name in file_names(folder) if is_own_file(name, rank, world_size)]
    for parent in {(folder / name).parent for name in names}:
        flush_to_disk(parent)
    return {name: _flush_and_hash(folder / name) for name in names}


def _flush_and_hash(path: Path) -> tuple[int, str]:
    flush_to_disk(path)
    return path.stat().st_size, sha256_of_file(path)


def file_names(folder: Path) -> list[str]:
    """Return the sorted relative paths of all files in a checkpoint except the manifest, with "/" as separator."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    return sorted(name for name in found if name != COMPLETE_NAME)


def write_checkpoint_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Write `complete.json`. Call this only after all other files of the checkpoint are on disk."""
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(manifest.files.items())}
    content = {"format_version": FORMAT_VERSION, **asdict(manifest.layout), "files": files}
    write_text(folder / COMPLETE_NAME, json.dumps(content, indent=1) + "\n")
    flush_to_disk(folder)


def read_checkpoint_manifest(folder: Path) -> CheckpointManifest:
    """Read and check `complete.json`. Raises `CheckpointError` if the file is missing or damaged.

    `complete.json` counts as damaged if it names a file outside the checkpoint's folder.
    """
    path = folder / COMPLETE_NAME
    try:
        return _parse_manifest(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: is not a complete checkpoint (no {COMPLETE_NAME}); use another checkpoint"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); use another checkpoint") from None


def _parse_manifest(content: dict[str, Any]) -> CheckpointManifest:
    if content["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"it has format version {content['format_version']}, but this dnabert_rm reads version {FORMAT_VERSION}"
        )
    layout = CheckpointLayout(int(content["world_size"]), int(content["zero_stage"]), bool(content["nvme"]))
    if layout.world_size < 1 or layout.zero_stage not in range(4):
        raise ValueError(f"invalid layout: {layout.world_size} ranks, ZeRO stage {layout.zero_stage}")
    files = {}
    for name, entry in content["files"].items():
        if not is_inside(name):
            raise ValueError(f"the file name {name!r} points outside the folder")
        if not _SHA256.fullmatch(entry["sha256"]):
            raise ValueError(f"the manifest has no valid SHA-256 for {name}")
        files[name] = (int(entry["bytes"]), entry["sha256"])
    return CheckpointManifest(layout, files)


def is_inside(name: str) -> bool:
    """Return whether `name` is a plain relative path without "..", so that it can't point outside a folder."""
    path = PurePosixPath(name)
    plain = path.as_posix() == name and not path.is_absolute() and bool(path.parts)
    return plain and ".." not in path.parts and "\\" not in name and "\0" not in name


def find_damage(folder: Path, manifest: CheckpointManifest, rank: int = 0, world_size: int = 1) -> str | None:
    """Check one rank's share of a checkpoint's files.

    Return a message about a damaged file, or None if all are intact.
    """
    for name, (size, digest) in sorted(manifest.files.items()):
        if is_own_file(name, rank, world_size) and (fault := _fault(folder, name, size, digest)):
            return f"{folder / name} {fault}"
    # DeepSpeed finds its files by pattern, so it would also read a file that is not in the manifest.
    for name in file_names(folder) if rank == 0 else []:
        if name.endswith(".pt") and name not in manifest.files:
            return f"{folder / name} is not in {COMPLETE_NAME}"
    return None


def _fault(folder: Path, name: str, size: int, digest: str) -> str | None:
    path = folder / name
    try:
        if path.resolve() != folder.resolve() / name:
            return "is a link to another location"
        if not path.is_file():
            return "is missing"
        if (found := path.stat().st_size) != size:
            return f"has {found} bytes, but {size} were written"
        if sha256_of_file(path) != digest:
            return "is damaged (its SHA-256 does not match the manifest)"
    except (OSError, RuntimeError) as error:  # RuntimeError: circular links
        return f"can't be read ({error})"
    return None
