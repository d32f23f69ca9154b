"""Record of an unfinished build. Running the same command again resumes the build from this record.

The record is the hidden folder `.build` in the output folder. It holds a lock, the options, the checksums of the input
files, the decompressed inputs, and one JSON file per finished shard. The folder is removed when the build is complete.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.sharding.options import BuildOptions
from dnabert_rm.data.columns import COLUMNS_NAME
from dnabert_rm.data.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, ShardInfo, SourceInfo, load_manifest
from dnabert_rm.utils.errors import ConfigError, DataError, UserError
from dnabert_rm.utils.files import sha256_of_file, write_text
from dnabert_rm.utils.lock import LockHeldError, file_lock

SCRATCH_NAME = ".build"
_PLAN_NAME = "plan.json"
_LOCK_NAME = "lock"
_BED_FLAGS = {"regions": "--regions", "exclude_regions": "--exclude"}
"""Flags of the options that hold BED files, keyed by the option's name."""


class BuildRecord:
    """Record of the build in the output folder `folder`. The record is stored in the subfolder `.build` (`scratch`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / SCRATCH_NAME

    @contextlib.contextmanager
    def open(self, options: BuildOptions, sources: list[SourceInfo]) -> Iterator[None]:
        """Lock the output folder and record the build during the `with` block. Remove the record on success.

        After a `UserError` or `OSError`, the record is kept if at least one shard is finished. If no shard is finished,
        the record is removed. The output folder is also removed in this case, if this call created it.

        Raises `ConfigError` if the output folder holds a different build, or if another process is building there.
        """
        is_new = not self.folder.exists()
        if not is_new and not self.folder.is_dir():
            raise ConfigError(f"--out {self.folder}: is not a folder; choose another output folder")
        inputs = {
            "format_version": FORMAT_VERSION,
            "options": options.to_json(),
            "sources": [asdict(source) for source in sources],
        }
        self._check_same_build(inputs)
        self.scratch.mkdir(parents=True, exist_ok=True)
        with self._locked():
            try:
                self._save(inputs)
                yield
                shutil.rmtree(self.scratch, ignore_errors=True)
            except (UserError, OSError):
                self._remove_temporary_files()
                if not self.finished_shards():
                    shutil.rmtree(self.scratch, ignore_errors=True)
                    if is_new:
                        shutil.rmtree(self.folder, ignore_errors=True)
                raise

    def finished_shards(self) -> dict[str, ShardInfo]:
        """Return the `ShardInfo` (manifest entry) of each finished shard, keyed by name.

        The entries are from the manifest if the build is complete, otherwise from the record.
        """
        if (manifest := self.finished_manifest()) is not None:
            return {shard.name: shard for shard in manifest.shards}
        found = {}
        for path in self.scratch.glob("shard-*.tar.json"):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                info = ShardInfo.from_json(json.loads(path.read_text(encoding="utf-8")))
                found[info.name] = info
        return found

    def finished_manifest(self) -> Manifest | None:
        """Return the manifest of a finished build, or None if the build is not finished.

        Raises `DataError` if the manifest or `columns.npz` is damaged or missing. Then nobody knows the segments.
        """
        if not (self.folder / MANIFEST_NAME).exists():
            return None
        try:
            return load_manifest(self.folder)
        except DataError as error:
            raise DataError(f"{error}; to build it again, remove {self.folder} first") from None

    def _check_same_build(self, inputs: dict[str, Any]) -> None:
        """Raise `ConfigError` if the output folder holds a build whose options or input files differ from `inputs`.

        Shards without a record or manifest also raise `ConfigError`.
        """
        earlier = self._load()
        if earlier is None:
            unknown = next(self.folder.glob("shard-*.tar"), None)
            if unknown is not None:
                raise ConfigError(f"--out {self.folder}: holds {unknown.name}, but no manifest; choose an empty folder")
        elif earlier != inputs:
            raise ConfigError(
                f"--out {self.folder}: holds another build ({'; '.join(_differences(earlier, inputs))}); "
                "pass the same options and files, choose another folder, or remove this one"
            )

    def _load(self) -> dict[str, Any] | None:
        """Return the options and input files of the build in the output folder, finished or unfinished.

        Return None if the output folder holds no build.
        """
        if (manifest := self.finished_manifest()) is not None:
            # A finished build of an earlier version is the same data. `finished_manifest` keeps it as it is.
            return {
                "format_version": FORMAT_VERSION,
                "options": manifest.options,
                "sources": [asdict(source) for source in manifest.sources],
            }
        with contextlib.suppress(FileNotFoundError, ValueError):
            recorded: dict[str, Any] = json.loads((self.scratch / _PLAN_NAME).read_text(encoding="utf-8"))
            return recorded
        return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the output folder during the `with` block. Raises `ConfigError` if another build holds the lock."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.scratch / _LOCK_NAME))
            except LockHeldError:
                raise ConfigError(
                    f"--out {self.folder}: another build is running in this folder; wait until it ends"
                ) from None
            yield

    def _save(self, inputs: dict[str, Any]) -> None:
        write_text(self.scratch / _PLAN_NAME, json.dumps(inputs, indent=1, sort_keys=True))
        self._remove_temporary_files()

    def _remove_temporary_files(self) -> None:
        """Remove temporary files that a killed or failed process left behind."""
        names = [f".{name}.*.tmp" for name in (MANIFEST_NAME, COLUMNS_NAME)]
        for path in [*self.scratch.glob("*.tmp"), *(path for name in names for path in self.folder.glob(name))]:
            path.unlink(missing_ok=True)


def is_intact(folder: Path, info: ShardInfo) -> bool:
    """Return whether the shard on disk has the size and checksum in `info`."""
    path = folder / info.name
    return path.is_file() and path.stat().st_size == info.bytes and sha256_of_file(path) == info.sha256


def _differences(earlier: dict[str, Any], inputs: dict[str, Any]) -> list[str]:
    """Return a description of each difference between two builds: options first, then files."""
    if earlier.get("format_version", 1) != inputs["format_version"]:
        return ["it was begun by an earlier version of this program"]
    there = earlier["options"]
    here = inputs["options"]
    differences = [
        f"{_BED_FLAGS[name]} was {_shown_files(there.get(name, []))}, now {_shown_files(here.get(name, []))}"
        if name in _BED_FLAGS
        else f"--{name.replace('_', '-')} was {_shown(there.get(name))}, now {_shown(here.get(name))}"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    old, new = ({(s["genome"], s["file"]): s["sha256"] for s in build["sources"]} for build in (earlier, inputs))
    for genome, file in sorted({*old, *new}):
        before = old.get((genome, file))
        now = new.get((genome, file))
        if before != now:
            what = "was removed" if now is None else "was added" if before is None else "has changed"
            differences.append(f"{file} (genome {genome}) {what}")
    return differences or ["the files are in another order"]


def _shown(value: Any) -> str:
    """Return an option's value as on a command line."""
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else "none" if value is None else str(value)


def _shown_files(files: list[dict[str, str]]) -> str:
    """Return the names of BED files with the first digits of their checksums."""
    return ", ".join(f"{file['file']} (SHA-256 {file['sha256'][:8]})" for file in files) or "no BED file"
