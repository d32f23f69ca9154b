"""Patches for webdataset: a `TarWriter` without torch and without tarfile's slow stream mode."""

from __future__ import annotations

import io
import sys
import tarfile
from functools import cache
from typing import Any

COPY_BYTES = 1 << 20
FIXED_FIELDS = {"user": "", "group": "", "mode": 0o444, "mtime": 0, "encoder": False}
"""Fixed owner, mode and time of every member, so that the same content gives the same bytes."""


def make_tar_writer(out: Any) -> Any:
    """Return webdataset's `TarWriter` for the binary file `out`, with fixed times and owners for all members.

    What is changed: the writer's attribute `tarstream` becomes a `TarFile` that writes one member at a time. The bytes
    of the tar file do not change. Closing the writer also closes the `TarFile`.

    Reason: `TarWriter` uses tarfile's stream mode, which writes blocks of 10 KB. Writing then takes longer than
    encoding the k-mers.

    Upstream: no upstream issue known; webdataset/writer.py, `TarWriter.__init__`.
    """
    writer = tar_writer_class()(io.BytesIO(), **FIXED_FIELDS)
    writer.tarstream = tarfile.TarFile(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=COPY_BYTES)
    return writer


@cache
def tar_writer_class() -> Any:
    """Return `webdataset.writer.TarWriter`, imported without torch.

    What is changed: `sys.modules["torch"]` is None during the import, so that importing torch fails. Afterwards
    webdataset's modules are removed from `sys.modules`, and a later import of webdataset finds torch. Nothing is
    changed if torch or webdataset is already imported.

    Reason: webdataset works without torch, but imports torch if torch is installed. Importing torch takes
    seconds and hundreds of megabytes per worker.

    Upstream: no upstream issue known.
    """
    if "webdataset" in sys.modules or "torch" in sys.modules:
        from webdataset.writer import TarWriter

        return TarWriter
    sys.modules["torch"] = None  # type: ignore[assignment] # makes `import torch` fail
    try:
        from webdataset.writer import TarWriter
    finally:
        del sys.modules["torch"]
        for name in [name for name in sys.modules if name.partition(".")[0] == "webdataset"]:
            del sys.modules[name]
    return TarWriter
