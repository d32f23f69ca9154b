"""Errors of full and failing file systems, in one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dnabert_rm.utils.errors import (
    EXIT_USER_ERROR,
    FileSystemError,
    explain_file_system_errors,
    run_command,
)


def failing(number: int, *name: str) -> None:
    raise OSError(number, os.strerror(number), *name)


@pytest.mark.parametrize("number, advice", [
    (errno.ENOSPC, "free space on disk"), (errno.EDQUOT, "free space on disk"), (errno.ESTALE, "check the file system"),
    (errno.EIO, "check the file system"), (errno.ETIMEDOUT, "check the file system"),
])  # fmt: skip
def test_any_command_reports_them_in_one_line(number: int, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("prog", lambda: failing(number, "/data/a.tar")) == EXIT_USER_ERROR
    expected = f"prog: error: /data/a.tar: {os.strerror(number)}; {advice}, and run the command again\n"
    assert capsys.readouterr().err == expected
    with pytest.raises(FileSystemError) as raised, explain_file_system_errors(Path("/run"), "and go on"):
        failing(number)
    assert str(raised.value) == f"/run: {os.strerror(number)}; {advice}, and go on" and raised.value.on_one_rank


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ECHILD])
def test_other_errors_of_the_system_are_bugs(number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)):
        run_command("prog", lambda: failing(number))
    with pytest.raises(OSError, match=os.strerror(number)), explain_file_system_errors(Path("/run"), ""):
        failing(number)
