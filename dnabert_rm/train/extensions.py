"""DeepSpeed imported, and what it compiles at the first use: which parts, and the lock around each."""

from __future__ import annotations

import fcntl
import os
from typing import Any


class BuildLock:
    """Takes the place of torch's lock around the compiling of an extension: one process builds, the others wait.

    torch's is a file that stays when its process is killed, and then every later run waits for ever without a word.
    This one is POSIX's, as `lock.take_lock` takes it: the system gives it back however its holder ends.
    """

    def __init__(self, lock_file_path: str, **_: Any) -> None:
        """`lock_file_path` is what torch would make; the lock lies beside it, where an old one is no hindrance."""
        self._descriptor = os.open(f"{lock_file_path}.held", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def try_acquire(self) -> bool:
        """Whether this process is the one to build."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: all build, as if each were alone
            return True
        return True

    def wait(self) -> None:
        """Return once the process that builds is done, or gone."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        finally:
            self.release()

    def release(self) -> None:
        """Let the others go on."""
        os.close(self._descriptor)


def import_deepspeed() -> Any:
    """The deepspeed module; what it compiles is guarded by `BuildLock`.

    Left out is the shared-memory collective that it would compile for CPU ranks. Only its inference uses it, and every
    rank leaves 69 MB in /dev/shm.
    """
    import deepspeed
    from torch.utils import cpp_extension

    cpp_extension.FileBaton = BuildLock  # type: ignore[assignment,misc]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
