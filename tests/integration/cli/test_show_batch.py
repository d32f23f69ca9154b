"""`dnabert-rm show-batch` shows what the training loop reads, window for window."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ROOT, clean_environment, random_bases, run_cli, write_prepared

from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.cli.main import load_command, main
from dnabert_rm.cli.show_batch import WindowPrinter, token_marks, window_bases
from dnabert_rm.config import load_preset, resolve
from dnabert_rm.data.batching import BatchPlan
from dnabert_rm.data.dataset import make_dataset
from dnabert_rm.data.loader import MicroBatchSampler, make_loader
from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.genome import kmer
from dnabert_rm.masking.collator import make_collator
from dnabert_rm.masking.schedule import make_mask_schedule

FIELDS = ["n", "step", "phase", "genome", "contig", "start", "end", "strand", "span", "input_ids", "labels"]
CASES = {
    "defaults": [],
    "both strands": ["--strand", "both", "--masking", "randommask-matched"],
    "gaps": ["--data.overlap", "false", "--strand", "random", "--data.lengths", "random"],
    "spans": ["--masking.replacement", "span", "--masking.draw", "max", "--seed", "7"],
    "tokens": ["--masking", "token"],
}


@pytest.fixture(scope="module")
def sequences() -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [[random_bases(rng, 3000), random_bases(rng, 2500)] for _ in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sequences) -> Path:
    path = tmp_path_factory.mktemp("show") / "data"
    write_prepared(path, sequences)
    return path


def flags_of(folder: Path, *more: object) -> list[str]:
    flags = ["--preset", "tiny", "--data", folder, "--window", 66, "--global-batch", 12, "--steps", 100, *more]
    return [str(flag) for flag in flags]


def write_checkpoint(checkpoint: Path, state: TrainState) -> Path:
    """Write the metadata of a checkpoint, without tensors."""
    checkpoint.mkdir(parents=True)
    config = resolve(load_preset("tiny"), {"data": {"path": ["d"]}, "train": {"output": "r"}})
    model = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 96, "max_position_embeddings": 128}  # fmt: skip
    tokenizer = dataclasses.asdict(TokenizerInfo("kmer", kmer.vocab_size(6), 6))
    files = {"state.json": state.to_json(), "config.toml": config.to_toml(), "config.json": json.dumps(model),
             "tokenizer.json": json.dumps(tokenizer), "complete.json": "{}"}  # fmt: skip
    for name, text in files.items():
        (checkpoint / name).write_text(text)
    return checkpoint


def shown(flags: list[str], capsys) -> list[dict]:
    """The rows of `show-batch --json`, run in this process."""
    assert main(["show-batch", *flags, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def trained_on(flags: list[str], step: int, ranks: int, accumulation: int) -> dict[int, tuple]:
    """Input ids and labels by sample index of what the ranks of a run load at a step, with loader workers."""
    config = load_command("pretrain").parse("pretrain", [*flags, "--output", "unused"])[1].config()
    dataset, plan = make_dataset(config), BatchPlan.constant(config.train.global_batch)
    collate, found = (
        make_collator(
            config, make_mask_schedule(config, dataset.tokenizer.k), plan.step_of, dataset.tokenizer.vocab_size
        ),
        {},
    )
    for rank in range(ranks):
        # From a step before, as in a run: the step that is looked at is prefetched while another is trained.
        sampler = MicroBatchSampler(plan, step - 1, step + 1, rank, ranks, 12 // (ranks * accumulation))
        for batch in list(make_loader(dataset, collate, sampler, num_workers=2))[accumulation:]:
            labels = torch.full(batch["input_ids"].shape, -100)
            labels.view(-1)[batch["positions"]] = batch["targets"]
            for row, sample in enumerate(batch["samples"].tolist()):
                found[sample] = (batch["input_ids"][row].tolist(), labels[row].tolist(), int(batch["span"][row]))
    return found


@pytest.mark.parametrize("case", CASES)
def test_it_shows_what_the_training_loop_reads(folder, case, capsys):
    flags = flags_of(folder, *CASES[case])
    rows = shown([*flags, "--step", "57"], capsys)
    assert [row["n"] for row in rows] == list(range(57 * 12, 58 * 12))
    assert all(list(row) == FIELDS for row in rows)
    trained = trained_on(flags, 57, ranks=2, accumulation=3)
    assert {row["n"]: (row["input_ids"], row["labels"], row["span"]) for row in rows} == trained


@pytest.mark.parametrize("case", CASES)
def test_coordinates_are_those_of_the_bases(folder, sequences, case, capsys):
    flat = [sequence for shard in sequences for sequence in shard]
    stride = 6 if case == "gaps" else 1
    strands = set()
    for step in (3, 57):
        for row in shown([*flags_of(folder, *CASES[case]), "--step", str(step)], capsys):
            bases = flat[int(row["contig"].removeprefix("contig"))][row["start"] : row["end"]]
            if row["strand"] == "-":
                bases = bases[::-1].translate(str.maketrans("ACGT", "TGCA"))
            original = [token if label == -100 else label
                        for token, label in zip(row["input_ids"], row["labels"], strict=True)]  # fmt: skip
            assert original == [kmer.CLS_ID, *kmer.encode(bases, 6)[::stride].tolist(), kmer.SEP_ID]
            assert (row["genome"], row["step"]) == ("g", step)
            strands.add(row["strand"])
    assert strands == ({"+", "-"} if case in ("both strands", "gaps") else {"+"})


@pytest.mark.parametrize(("step", "phase", "largest"), [(29_999, 1, 6), (30_000, 2, 8), (60_000, 3, 10)])
def test_phases_of_a_full_run(folder, step, phase, largest, capsys):
    flags = [*flags_of(folder), "--steps", "480000", "--global-batch", "64", "--step", str(step)]
    rows = shown(flags, capsys)
    assert {row["phase"] for row in rows} == {phase}
    assert max(row["span"] for row in rows) == largest


def test_a_run_whose_batch_changed_shows_its_own_steps(folder, tmp_path, capsys):
    """The checkpoint's record of batch sizes counts, not the flag."""
    state = TrainState(40, BatchPlan.constant(12).changed(20, 6), "f", 42)
    run = tmp_path / "run"
    checkpoint = write_checkpoint(run / "checkpoints" / "step_00000040", state)
    write_checkpoint(
        checkpoint.with_name("step_00000040.damaged"), dataclasses.replace(state, plan=BatchPlan.constant(1))
    )
    rows = shown([*flags_of(folder), "--output", str(run), "--step", "30"], capsys)
    assert [row["n"] for row in rows] == list(range(20 * 12 + 10 * 6, 20 * 12 + 11 * 6))
    # A resume changes the batch from the checkpoint on, and a new run has its own.
    rows = shown([*flags_of(folder), "--output", str(run), "--step", "45"], capsys)
    assert [row["n"] for row in rows] == list(range(20 * 12 + 20 * 6 + 5 * 12, 20 * 12 + 20 * 6 + 6 * 12))
    rows = shown([*flags_of(folder), "--output", str(run), "--resume", "never", "--step", "30"], capsys)
    assert [row["n"] for row in rows] == list(range(30 * 12, 31 * 12))


def test_the_command_needs_no_output_folder_and_no_torch(folder):
    code = ("import sys; from dnabert_rm.cli.main import main; code = main(sys.argv[1:]); "
            "assert 'torch' not in sys.modules and 'deepspeed' not in sys.modules; sys.exit(code)")  # fmt: skip
    command = [sys.executable, "-c", code, "show-batch", *flags_of(folder), "--step", "3", "--first", "2"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith("step 3: the first 2 of 12 windows\n")
    assert done.stdout.count("masked ") == 3
    assert done.stdout.endswith("\n\nGuessing has a loss of k ln 4 = 8.318 nats per masked token (k = 6).\n")


def test_mistakes_are_one_line(folder):
    for flags, message in [
        (["--step", "100"], "--step 100: the run has steps 0 to 99"),
        (["--step", "3", "--first", "0"], "--first 0: must be at least 1"),
        (["--step", "3", "--data", "nowhere"], "nowhere/manifest.json: no such file"),
    ]:
        done = run_cli("-m", "dnabert_rm.cli.main", "show-batch", *flags_of(folder), *flags)
        assert done.returncode == 2
        assert done.stdout == ""
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_picture_of_a_window(folder, capsys, monkeypatch):
    """Bases in reading direction, a mark under the first base of each token; colour only on a terminal."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "")
    _, flags = load_command("show-batch").parse("show-batch", [*flags_of(folder), "--step", "3"])
    dataset = make_dataset(flags.config({"train": {"output": "none"}}))
    tokens = kmer.encode("ACGTACGTACGT", 6).tolist()
    shown_tokens = [tokens[0], kmer.MASK_ID, tokens[2], 77, tokens[4], tokens[5], tokens[6]]
    row = {
        "n": 5, "step": 1, "phase": 2, "genome": "g", "contig": "c", "start": 100, "end": 112, "strand": "-", "span": 6,
        "input_ids": [2, *shown_tokens, 3], "labels": [-100, -100, *tokens[1:4], -100, -100, -100, -100],
    }  # fmt: skip
    assert WindowPrinter(dataset, kmers=False).text(row).splitlines() == [
        "n 5  g c:100-112 -  phase 2  span 6  masked 3 of 7 (42.9%)",
        "111 ACGTACGTACGT",
        "    .M=R...",
    ]
    listed = WindowPrinter(dataset, kmers=True).text(row).splitlines()[1:]
    assert " ".join(listed).split() == [
        "ACGTAC", "[MASK]", "=GTACGT", "R" + kmer.vocabulary(6)[77], "ACGTAC", "CGTACG", "GTACGT"
    ]  # fmt: skip
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[41;97mM\x1b[0m" in WindowPrinter(dataset, kmers=False).text(row)
    assert "\x1b[41;97m[MASK]\x1b[0m" in WindowPrinter(dataset, kmers=True).text(row)


def test_unknown_tokens_show_as_such():
    ids = kmer.encode("ACGTANGTACGTAC", 6).astype(np.int64)
    assert window_bases(ids, 6, 1) == "NNNNNNGTACGTAC"
    assert "".join(token_marks(ids, np.full(len(ids), -100))) == "??????..."
