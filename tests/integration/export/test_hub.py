"""Upload of exports to a local server with the hub's API: equal files, branches, repeated uploads and failures."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hub_server import TOKEN, HubServer
from huggingface_hub import ModelCard
from support import random_bases, run_cli, run_ranks, write_prepared
from transformers import pipeline

from dnabert_rm.export.export_model import export

MODEL = "--model.num_layers 1 --model.hidden_size 32 --model.num_heads 2 --model.intermediate_size 32"
SIZES = "--model.max_positions 34 --global-batch 4 --window 32 --workers 0 --steps 2 --save-every 1"
FLAGS = f"--preset tiny {MODEL} {SIZES} --ds-config zero0".split()
COMPLETE = "the export is complete, but not uploaded to lab/dna-bert"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    write_prepared(folder / "data", [[random_bases(np.random.default_rng(0), 900)]], k=3)
    run_ranks(1, *FLAGS, "--data", folder / "data", "--output", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, tmp_path_factory.mktemp("exports") / "one").folder


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A valid token. Large files go through LFS, since the server does not have the hub's chunked storage (Xet)."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub(environment: None, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return run_cli("-m", "dnabert_rm.cli.main", *words)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line on standard error of a command that has failed with exit code 2."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


def test_an_export_is_uploaded_as_it_is_on_disk(run: Path, hub: HubServer, tmp_path: Path) -> None:
    words = ["--max-shard-size", "20KB", "--license", "apache-2.0", "--push-to-hub", "lab/dna-bert"]
    done = command("export", run, "--output", tmp_path / "model", *words, "--hub-private", "true")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["lab/dna-bert"]
    files = contents(tmp_path / "model")
    assert repository.branches == {"main": {".gitattributes": b"", **files}}
    assert len(hub.large) > 1 and b"\nlicense: apache-2.0\n" in files["README.md"]
    assert repository.private
    ((branch, commit),) = repository.commits
    line = f"{hub.url}/lab/dna-bert/tree/main: uploaded {tmp_path / 'model'}, commit {commit}"
    assert branch == "main" and done.stdout.splitlines()[1:] == [line]


def test_checkpoints_become_branches(run: Path, hub: HubServer, tmp_path: Path) -> None:
    """By default, an export uploads nothing."""
    first, second = tmp_path / "1", tmp_path / "2"
    assert command("export", run, "--output", first, "--step", "1").returncode == 0
    assert not hub.requests
    assert command("push", first, "lab/dna-bert", "--hub-revision", "step_00000001").returncode == 0
    words = ["--push-to-hub", "lab/dna-bert", "--hub-revision", "step_00000002"]
    done = command("export", run, "--output", second, *words)
    assert f"{hub.url}/lab/dna-bert/tree/step_00000002: uploaded {second}, commit" in done.stdout
    branches = hub.repositories["lab/dna-bert"].branches
    assert branches["step_00000001"] == {".gitattributes": b"", **contents(first)}
    assert branches["step_00000002"] == {".gitattributes": b"", **contents(second)}
    assert branches["main"] == {".gitattributes": b""} and contents(first) != contents(second)


def test_a_repeated_upload_replaces_weights_and_keeps_other_files(
    run: Path, exported: Path, hub: HubServer, tmp_path: Path
) -> None:
    assert command("push", exported, "lab/dna-bert").returncode == 0
    repository = hub.repositories["lab/dna-bert"]
    repository.branches["main"]["figure.png"] = b"figure"
    again = command("push", exported, "lab/dna-bert")
    assert again.returncode == 0 and len(repository.commits) == 1
    assert f"commit {repository.commits[0][1]}" in again.stdout
    # transformers would prefer a model.safetensors that is left over to the new shards.
    sharded = export(run, tmp_path / "sharded", max_shard_size="20KB").folder
    assert command("push", sharded, "lab/dna-bert").returncode == 0
    assert "model.safetensors" not in repository.branches["main"] and len(repository.commits) == 2
    assert repository.branches["main"] == {".gitattributes": b"", "figure.png": b"figure", **contents(sharded)}


@pytest.mark.parametrize("where", ["/api/repos/create", "/api/models/lab/dna-bert/commit/main"])
def test_a_dropped_connection_leaves_the_export(run: Path, hub: HubServer, tmp_path: Path, where: str) -> None:
    """The export exists, and the command of the message uploads it."""
    model = tmp_path / "model"
    hub.drop = lambda method, path: path == where
    if where.endswith("create"):
        done = command("export", run, "--output", model, "--push-to-hub", "lab/dna-bert", "--hub-private", "true")
        assert f"{model}: step 2" in done.stdout
    else:
        export(run, model)
        done = command("push", model, "lab/dna-bert", "--hub-private", "true")
    line, before = failed(done), contents(model)
    assert f"{model}: {COMPLETE} (" in line and "check the network and HF_ENDPOINT" in line
    hub.drop = lambda method, path: False
    again = line.split("repeat only the upload: ")[1]
    assert again == f"dnabert-rm push {model} lab/dna-bert --hub-private true"
    assert command(*shlex.split(again)[1:]).returncode == 0
    assert contents(model) == before
    assert hub.repositories["lab/dna-bert"].branches["main"] == {".gitattributes": b"", **before}


@pytest.mark.parametrize(
    ("variables", "repo", "message"),
    [
        ({"HF_TOKEN": "hf_wrong"}, "lab/dna-bert", "(the hub refused the token); set HF_TOKEN to a valid token"),
        ({"HF_TOKEN": ""}, "lab/dna-bert", "(no token); set HF_TOKEN"),
        ({"HF_HUB_OFFLINE": "1"}, "lab/dna-bert", "(offline mode is on); unset HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "lab/dna-bert", "check the network and HF_ENDPOINT"),
        ({}, "other/dna-bert", "(the token has no permission to write to other); use a token with write"),
    ],
)
def test_a_failed_upload_is_explained_in_one_line(
    exported: Path, hub: HubServer, monkeypatch, variables: dict[str, str], repo: str, message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = contents(exported)
    line = failed(command("push", exported, repo, "--hub-revision", "v1"))
    assert f"{exported}: the export is complete, but not uploaded to {repo} (" in line and message in line
    assert line.endswith(f"repeat only the upload: dnabert-rm push {exported} {repo} --hub-revision v1")
    assert contents(exported) == before and not hub.repositories


def test_a_private_model_is_not_uploaded_to_a_public_repository(exported: Path, hub: HubServer) -> None:
    assert command("push", exported, "lab/dna-bert").returncode == 0
    line = failed(command("push", exported, "lab/dna-bert", "--hub-private", "true", "--hub-revision", "v1"))
    assert f"{COMPLETE} (the repository exists and is public); change this in its settings" in line
    assert list(hub.repositories["lab/dna-bert"].branches) == ["main"]


def test_a_card_that_the_hub_refuses(exported: Path, hub: HubServer, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    (tmp_path / "model" / "README.md").write_text(card.replace("tags:", "license: not-a-license\ntags:", 1))
    line = failed(command("push", tmp_path / "model", "lab/dna-bert"))
    assert f'{COMPLETE} (ValueError: Invalid metadata in README.md. - "license" must be one of' in line
    assert not hub.repositories["lab/dna-bert"].commits


def test_a_large_file_that_is_refused(exported: Path, hub: HubServer) -> None:
    """The status of the answer is reported, not only that the file failed."""
    hub.refuse_large = True
    line = failed(command("push", exported, "lab/dna-bert"))
    assert f"{COMPLETE} (the token has no permission to write to lab)" in line
    assert not hub.repositories["lab/dna-bert"].commits


def test_the_example_of_the_card_works_in_fill_mask(exported: Path) -> None:
    (example,) = ModelCard.load(exported / "README.md").data["widget"]
    predictions = pipeline("fill-mask", model=str(exported), tokenizer=str(exported))(example["text"], top_k=2)
    assert [len(one["token_str"]) for one in predictions] == [3, 3]


def test_wrong_flags_are_refused_before_the_export(run: Path, tmp_path: Path) -> None:
    words = ["--push-to-hub", "dna bert", "--license", "Apache 2"]
    done = command("export", run, "--output", tmp_path / "model", *words)
    assert done.returncode == 2 and not (tmp_path / "model").exists()
    assert "--push-to-hub dna bert: must be OWNER/NAME" in done.stderr
    assert "--license Apache 2: pass an identifier of the hub" in done.stderr
    line = failed(command("export", run, "--output", tmp_path / "model", "--hub-revision", "v1"))
    assert "--hub-revision v1: has no effect without --push-to-hub" in line


def test_only_a_complete_export_is_uploaded(exported: Path, hub: HubServer, tmp_path: Path) -> None:
    assert "is not an export" in failed(command("push", tmp_path, "lab/dna-bert"))
    shutil.copytree(exported, tmp_path / "cut")
    weights = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(weights[:-1])
    line = failed(command("push", tmp_path / "cut", "lab/dna-bert"))
    assert "cut/model.safetensors: cannot be read" in line and "export again to a new folder" in line
    assert not hub.requests
