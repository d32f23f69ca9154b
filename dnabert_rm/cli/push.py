"""Command `dnabert-rm push`: upload an exported folder to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dnabert_rm.config.command_line import Command
from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.utils.environment import suppress_library_output


@dataclass(frozen=True)
class PushSettings(Settings):
    """Flags of `push`."""

    model: Path = setting(positional=True, metavar="HFDIR")
    """A folder that `export` wrote. All its files are uploaded."""
    repo: str = setting(positional=True, metavar="OWNER/NAME")
    """The repository. It is created if it is missing."""
    hub_private: Literal["true", "false"] | None = None
    """Whether a new repository is private; by default as its owner has set. An existing one must agree."""
    hub_revision: str = setting("main", metavar="NAME")
    """The branch. It is created if it is missing."""

    def problems(self) -> Iterator[str]:
        """Yield an error message if the name of the repository is wrong."""
        from dnabert_rm.export.hub import repo_problems

        yield from repo_problems(self.repo, "OWNER/NAME")


def run(settings: PushSettings) -> None:
    """Upload the folder and print the URL and the commit."""
    suppress_library_output()
    from dnabert_rm.export.hub import check_export_folder

    check_export_folder(settings.model)
    upload(settings.model, settings.repo, settings.hub_private, settings.hub_revision)


def upload(folder: Path, repo: str, private: str | None, revision: str) -> None:
    """Upload an export and print the URL and the commit. `private` is "true", "false" or None."""
    from dnabert_rm.export.hub import HubTarget, push

    done = push(folder, HubTarget(repo, None if private is None else private == "true", revision))
    print(f"{done.url}: uploaded {folder}, commit {done.commit}")


COMMAND = Command(
    name="push",
    help="upload an exported folder to the Hugging Face hub",
    example="dnabert-rm push models/first my-lab/dna-bert --hub-private true",
    settings=PushSettings,
    run=run,
)
