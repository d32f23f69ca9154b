"""Files: outputs are complete or absent; JSON that can't be used is one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dnabert_rm.utils import files
from dnabert_rm.utils.errors import CheckpointError, ConfigError, DataError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_file(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]
    with files.atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_an_output_is_none_of_the_inputs(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    table = tmp_path / "a.csv"
    inner = tmp_path / "folder" / "deep" / "b.csv"
    for path in (table, inner):
        path.write_text("mine")
    link = tmp_path / "link.csv"
    link.symlink_to(inner)
    inputs = [table, tmp_path / "none.csv", tmp_path / "folder"]
    for output, found in ((table, table), (inner, inner), (link, inner)):
        with pytest.raises(ConfigError, match=rf"^--out {output}: is the same file as the input {found}; choose"):
            files.check_not_input(output, inputs, "--out")
    for output in ("c.csv", "none.csv", "folder/c.csv"):
        files.check_not_input(tmp_path / output, inputs)


def test_outputs_of_a_command_appear_together(tmp_path: Path) -> None:
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    with pytest.raises(DataError, match="No space left on device"), files.atomic_outputs(*paths) as temporaries:
        temporaries[0].write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporaries[0]))
    assert names(tmp_path) == []
    with files.atomic_outputs(*paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("x")
        assert not any(path.exists() for path in paths)
    assert names(tmp_path) == ["a.csv", "b.csv"]


def test_a_failed_folder_goes_with_the_parents_made_for_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.atomic_folder(tmp_path / "new/model") as temporary:
        (temporary / "x").touch()
        raise RuntimeError
    assert names(tmp_path) == []
    with files.atomic_folder(tmp_path / "new/model") as temporary:
        (temporary / "x").touch()
    assert names(tmp_path / "new") == ["model"] and names(tmp_path / "new/model") == ["x"]


@pytest.mark.parametrize(("content", "reason"), [("[1]", "does not hold a JSON object"), ("{", "is not valid JSON")])
def test_json_that_is_no_object(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(CheckpointError, match=r"a\.json: no such file; run it first$"):
        files.read_json(path, error=CheckpointError, advice="run it again", missing="run it first")
    path.write_text(content)
    with pytest.raises(CheckpointError, match=rf"a\.json: {reason}; run it again$"):
        files.read_json(path, error=CheckpointError, advice="run it again")
    files.write_json(path, {"a": 1})
    assert files.read_json(path) == {"a": 1}


def test_json_lines_skip_a_line_that_was_cut(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert files.read_json_lines(tmp_path / "m.jsonl") == [{"step": 0}, {"step": 1}]
