"""Which changes a resumed run may make: with `--allow-changes`, without, and never."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dnabert_rm.checkpoint.compatibility import (
    FINGERPRINT,
    Change,
    check_compatible,
    describe_changes,
    read_metadata,
    record_changes,
)
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig, resolve
from dnabert_rm.data.batching import BatchPlan
from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.model.build import architecture_of
from dnabert_rm.utils.errors import CheckpointError

KMERS = TokenizerInfo("kmer", 69, 3)
BPE = TokenizerInfo("bpe", 69, None, None, "tokenizer.model", "a" * 64)
SIZES = {"hidden_size": 64, "num_layers": 1, "num_heads": 2, "intermediate_size": 96, "max_positions": 128}


def run_config(**sections: dict[str, Any]) -> RunConfig:
    base = {
        "model": {"architecture": "bert", **SIZES},
        "data": {"path": ["prepared"], "window": 66},
        "train": {"output": "run", "steps": 12, "precision": "fp32", "global_batch": 8},
    }
    return resolve(base, sections)


def save(folder: Path, tokenizer: TokenizerInfo = KMERS, config: RunConfig | None = None) -> Path:
    """Write the metadata of a checkpoint of step 6."""
    folder.mkdir()
    (folder / "state.json").write_text(TrainState(6, BatchPlan.constant(8), "f" * 64, 42).to_json())
    (folder / "config.toml").write_text((config or run_config()).to_toml())
    (folder / "tokenizer.json").write_text(json.dumps(dataclasses.asdict(tokenizer)))
    model = {
        "model_type": "bert",
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
    }
    (folder / "config.json").write_text(json.dumps(model))
    return folder


def test_the_fingerprints_of_several_data_sets_are_all_shown(tmp_path: Path) -> None:
    old, new = f"{'a' * 64}+{'b' * 64}", f"{'a' * 64}+{'c' * 64}"
    text = describe_changes(6, [Change(FINGERPRINT, old, new)])
    assert f"was {'a' * 12}+{'b' * 12} and is {'a' * 12}+{'c' * 12}" in text


def check(folder: Path, config: RunConfig, tokenizer: TokenizerInfo = KMERS, fingerprint: str = "f" * 64) -> list:
    return check_compatible(read_metadata(folder), config, tokenizer, fingerprint)


def allowed(**sections: dict[str, Any]) -> RunConfig:
    return run_config(**{**sections, "train": {"allow_changes": True, **sections.get("train", {})}})


@pytest.mark.parametrize(
    ("saved", "now", "named"),
    [
        (KMERS, TokenizerInfo("kmer", 261, 4), "3-mers in the base order ATCG (69 ids), but the data have 4-mers"),
        (TokenizerInfo("kmer", 261, 4), KMERS, "4-mers in the base order ATCG (261 ids), but the data have 3-mers"),
        (KMERS, dataclasses.replace(KMERS, base_order="ACGT"), "in the base order ACGT"),
        (KMERS, BPE, "but the data have a bpe tokenizer of 69 ids (SHA-256 aaaaaaaaaaaa)"),
        (BPE, KMERS, "was trained with a bpe tokenizer of 69 ids"),
        (BPE, dataclasses.replace(BPE, model_sha256="b" * 64), "(SHA-256 bbbbbbbbbbbb)"),
    ],
)
def test_another_tokenizer_is_refused_even_if_changes_are_allowed(
    tmp_path: Path, saved: TokenizerInfo, now: TokenizerInfo, named: str
) -> None:
    folder = save(tmp_path / "checkpoint", saved)
    for config in (allowed(), run_config()):
        with pytest.raises(CheckpointError) as caught:
            check(folder, config, now, "e" * 64)
        line = str(caught.value)
        assert named in line and "a trained model can't change its tokenizer" in line
        assert "--allow-changes" not in line and "\n" not in line


@pytest.mark.parametrize("period", [3.0, 10 / 3, 2 * math.pi])
def test_a_period_of_any_number_of_digits_is_the_same_model(tmp_path: Path, period: float) -> None:
    config = run_config(model={"architecture": "modernbert", "rope_period": period})
    folder = save(tmp_path / "checkpoint", KMERS, config)
    architecture_of(config.model, 69).save_pretrained(folder)
    assert check(folder, config) == []
    other = run_config(model={"architecture": "modernbert", "rope_period": period + 0.01})
    with pytest.raises(CheckpointError, match=r"model\.rope_period was .* can't change its shape"):
        check(folder, other)


def test_a_bpe_model_file_may_be_renamed(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint", BPE)
    assert check(folder, run_config(), dataclasses.replace(BPE, model="other.model")) == []


def test_another_period_of_the_positions_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    content = json.loads((folder / "config.json").read_text()) | {"model_type": "modernbert"}
    content["rope_parameters"] = {"full_attention": {"rope_type": "linear", "factor": 3 / (2 * math.pi)}}
    (folder / "config.json").write_text(json.dumps(content))
    check(folder, allowed(model={"architecture": "modernbert", "rope_period": 3.0}))
    with pytest.raises(CheckpointError, match=r"model.rope_period was 3.0 and is 0.0; a trained model can't change"):
        check(folder, allowed(model={"architecture": "modernbert"}))


SHAPES = {
    "architecture": "modernbert",
    "hidden_size": 128,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 64,
    "max_positions": 512,
}


@pytest.mark.parametrize("name", SHAPES)
def test_another_shape_is_refused_even_if_changes_are_allowed(tmp_path: Path, name: str) -> None:
    """Also if an earlier version recorded the changed shape, which the model never had, in config.toml."""
    value = SHAPES[name]
    changed = allowed(model={name: value})
    for number, recorded in enumerate((run_config(), changed)):
        folder = save(tmp_path / f"checkpoint{number}", config=recorded)
        with pytest.raises(CheckpointError) as caught:
            check(folder, changed)
        line = str(caught.value)
        assert f"model.{name} was " in line and f" and is {value}; a trained model can't change its shape" in line
        assert "--allow-changes" not in line
        check(folder, allowed())


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"batch_start": 4, "batch_warmup_steps": 6}, "keeps its batch-size warm-up"),
        ({"precision": "fp16"}, "DeepSpeed can't convert to or from fp16"),
    ],
)
def test_what_a_resumed_run_cannot_apply_is_refused(tmp_path: Path, changed: dict[str, Any], advice: str) -> None:
    folder = save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=advice):
        check(folder, allowed(train=changed))


def test_changes_are_refused_with_the_flag_and_listed_with_it(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    changed = {"data": {"window": 34}, "optim": {"lr": 0.5}}
    with pytest.raises(CheckpointError) as caught:
        check(folder, run_config(**changed), fingerprint="e" * 64)
    line = str(caught.value)
    assert "was trained on other data (fingerprint ffffffffffff, now eeeeeeeeeeee)" in line
    assert "data.window was 66 and is 34; optim.lr was 0.0004 and is 0.5; undo the change" in line
    found = check(folder, allowed(**changed), fingerprint="e" * 64)
    assert found == [
        Change("data fingerprint", "f" * 64, "e" * 64),
        Change("data.window", 66, 34),
        Change("optim.lr", 0.0004, 0.5),
    ]
    assert describe_changes(6, found) == (
        "changed from step 6 on (--allow-changes): data fingerprint was ffffffffffff and is eeeeeeeeeeee; "
        "data.window was 66 and is 34; optim.lr was 0.0004 and is 0.5"
    )


def test_free_settings_are_no_changes(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    config = run_config(train={"save_every": 7, "global_batch": 4, "precision": "auto"}, data={"num_workers": 0})
    assert check(folder, config) == []


def test_more_steps_are_refused_in_a_line_that_says_how_to_continue(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError) as caught:
        check(folder, run_config(train={"steps": 20}))
    assert (
        "train.steps was 12 and is 20 (with --allow-changes the run goes on to step 20; learning rate, phases and a "
        "switch of the loss then follow the schedule of a run of 20 steps and may jump); undo the change"
        in str(caught.value)
    )


@pytest.mark.parametrize("name", ["config.json", "config.toml", "state.json", "tokenizer.json"])
def test_missing_and_damaged_records_are_one_line(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "checkpoint")
    (folder / name).write_text("[")
    with pytest.raises(CheckpointError, match=f"{name}: "):
        read_metadata(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: ") as caught:
        read_metadata(folder)
    assert "\n" not in str(caught.value) and "--init-from" not in str(caught.value)


def rows_of(run: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["field"]) for row in map(json.loads, (run / "changes.jsonl").read_text().splitlines())]


def test_the_record_holds_the_changes_of_the_steps_that_count(tmp_path: Path) -> None:
    """A run that resumes at an earlier step again replaces what it recorded from that step on."""
    record_changes(tmp_path, 3, [])
    assert not (tmp_path / "changes.jsonl").exists()
    steps, rate = Change("train.steps", 6, 12), Change("optim.lr", 0.1, 0.2)
    record_changes(tmp_path, 3, [rate])
    record_changes(tmp_path, 6, [steps, rate])
    assert rows_of(tmp_path) == [(3, "optim.lr"), (6, "train.steps"), (6, "optim.lr")]
    record_changes(tmp_path, 6, [steps])
    assert rows_of(tmp_path) == [(3, "optim.lr"), (6, "train.steps")]
    record_changes(tmp_path, 9, [])
    assert rows_of(tmp_path) == [(3, "optim.lr"), (6, "train.steps")]
    record_changes(tmp_path, 3, [])
    assert rows_of(tmp_path) == []
