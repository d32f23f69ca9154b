"""webdataset's `TarWriter` without torch, and without its slow stream mode."""

from __future__ import annotations

import io
import sys
import tarfile
from functools import cache
from typing import Any

COPY_BYTES = 1 << 20
FIXED_FIELDS = {"user": "", "group": "", "mode": 0o444, "mtime": 0, "encoder": False}
"""Owner, mode and time of every member: the same content gives the same bytes."""


def make_tar_writer(out: Any) -> Any:
    """webdataset's `TarWriter`, with fixed times and owners, writing a member at a time.

    Left alone it writes in blocks of 10 KB through tarfile's stream mode, which takes longer than
    making the ids; the bytes are the same.
    """
    writer = tar_writer_class()(io.BytesIO(), **FIXED_FIELDS)
    writer.tarstream = tarfile.TarFile(
        fileobj=out, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=COPY_BYTES
    )  # closed by the writer
    return writer


@cache
def tar_writer_class() -> Any:
    """`webdataset.writer.TarWriter`, imported without torch.

    webdataset takes torch where it finds it, which costs seconds and hundreds of megabytes a
    worker, and does without where it is absent. Whoever imports webdataset later gets it afresh.
    """
    if "webdataset" in sys.modules or "torch" in sys.modules:
        from webdataset.writer import TarWriter

        return TarWriter
    sys.modules["torch"] = None  # type: ignore[assignment] # "not found" for whoever imports it now
    try:
        from webdataset.writer import TarWriter
    finally:
        del sys.modules["torch"]
        for name in [name for name in sys.modules if name.partition(".")[0] == "webdataset"]:
            del sys.modules[name]
    return TarWriter
