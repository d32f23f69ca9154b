"""What a build has done so far, in a hidden folder, so that it can go on: options, inputs, finished shards."""

from __future__ import annotations

from dnabert_rm.utils.lock import LockHeldError, file_lock

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from data_prep.build.options import BuildOptions
from dnabert_rm.utils.errors import ConfigError, UserError
from dnabert_rm.data.manifest import MANIFEST_NAME, ShardInfo, SourceInfo, load_manifest
from dnabert_rm.utils.files import sha256_of_file, write_text

SCRATCH_NAME = ".build"
_PLAN_NAME, _LOCK_NAME = "plan.json", "lock"


class Journal:
    """The scratch folder of the build in `folder`; it is there only while a build is not finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / SCRATCH_NAME

    @contextlib.contextmanager
    def open(self, options: BuildOptions, sources: list[SourceInfo]) -> Iterator[None]:
        """Make the folder ours while the context lasts; the scratch folder goes when it ends well.

        Raises `ConfigError` where the folder holds a build of something else, or another process
        builds in it. After a `UserError` without a finished shard the folder is as it was before.
        """
        is_new = not self.folder.exists()
        if not is_new and not self.folder.is_dir():
            raise ConfigError(f"--out {self.folder}: is no folder; name another one")
        self._check_is_mine({"options": options.to_json(), "sources": [asdict(source) for source in sources]})
        self.scratch.mkdir(parents=True, exist_ok=True)
        with self._locked():
            try:
                self._note({"options": options.to_json(), "sources": [asdict(source) for source in sources]})
                yield
                shutil.rmtree(self.scratch, ignore_errors=True)
            except (UserError, OSError):
                self._remove_leftovers()
                if not self.noted_shards():
                    shutil.rmtree(self.scratch, ignore_errors=True)
                    if is_new:
                        shutil.rmtree(self.folder, ignore_errors=True)
                raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other builds out of the folder; `ConfigError` where one is running there."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.scratch / _LOCK_NAME))
            except LockHeldError:
                raise ConfigError(f"--out {self.folder}: another build is at work there; wait until it ends") from None
            yield

    def _check_is_mine(self, mine: dict[str, Any]) -> None:
        theirs = self._noted()
        if theirs is None:
            stray = next(self.folder.glob("shard-*.tar"), None)
            if stray is not None:
                raise ConfigError(
                    f"--out {self.folder}: holds {stray.name} of an unknown build; choose an empty folder"
                )
        elif theirs != mine:
            raise ConfigError(
                f"--out {self.folder}: holds another build ({'; '.join(_differences(theirs, mine))}); "
                "give the same options and files, or choose another folder, or remove this one"
            )

    def _noted(self) -> dict[str, Any] | None:
        """Options and sources of the finished or unfinished build that lies here, or None."""
        if (self.folder / MANIFEST_NAME).exists():
            manifest = load_manifest(self.folder)
            return {"options": manifest.options, "sources": [asdict(source) for source in manifest.sources]}
        with contextlib.suppress(FileNotFoundError, ValueError):
            noted: dict[str, Any] = json.loads((self.scratch / _PLAN_NAME).read_text())
            return noted
        return None

    def _note(self, mine: dict[str, Any]) -> None:
        write_text(self.scratch / _PLAN_NAME, json.dumps(mine, indent=1, sort_keys=True))
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove what a killed or failed process was writing."""
        for leftover in [*self.scratch.glob("*.tmp"), *self.folder.glob(f".{MANIFEST_NAME}.*.tmp")]:
            leftover.unlink(missing_ok=True)

    def noted_shards(self) -> dict[str, ShardInfo]:
        """Shards said to be finished, by name, by the manifest or the scratch folder."""
        if (self.folder / MANIFEST_NAME).exists():
            return {shard.name: shard for shard in load_manifest(self.folder).shards}
        found = {}
        for path in self.scratch.glob("shard-*.tar.json"):
            with contextlib.suppress(ValueError, TypeError):
                info = ShardInfo(**json.loads(path.read_text()))
                found[info.name] = info
        return found


def is_whole(folder: Path, info: ShardInfo) -> bool:
    """Whether the shard on disk has the size and checksum that `info` gives."""
    path = folder / info.name
    return path.is_file() and path.stat().st_size == info.bytes and sha256_of_file(path) == info.sha256


def _differences(theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """What differs, in words: options first, then files."""
    there, here = theirs["options"], mine["options"]
    told = [
        f"--{name.replace('_', '-')} {there.get(name)} there, {here.get(name)} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    old, new = ({(s["genome"], s["file"]): s["sha256"] for s in noted["sources"]} for noted in (theirs, mine))
    for genome, file in sorted({*old, *new}):
        before, now = old.get((genome, file)), new.get((genome, file))
        if before != now:
            what = "only there" if now is None else "only here" if before is None else "has changed"
            told.append(f"{file} (genome {genome}) {what}")
    return told or ["the files come in another order"]
