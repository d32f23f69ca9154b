"""Flags of `python -m data_prep upload`. The command itself is in `upload.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dnabert_rm.config.schema import Settings, setting


@dataclass(frozen=True, kw_only=True)
class UploadSettings(Settings):
    """Flags of `upload`."""

    folder: Path = setting(positional=True, metavar="DIR")
    """Folder of a finished build."""
    url: str = setting(positional=True, metavar="URL")
    """Target: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or hf://datasets/USER/NAME."""
    overwrite: bool = False
    """Replace another data set at URL."""


def upload(settings: UploadSettings) -> None:
    """Upload a folder of shards to object storage, and print one line of result."""
    from data_prep import upload as uploads

    print(uploads.run(settings.folder, settings.url, settings.overwrite))
