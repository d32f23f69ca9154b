"""`dnabert-rm export` for every ZeRO stage: correct weights, detected faults, means of checkpoints, the model card."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import ROOT, on_ranks, random_bases, rewrite_manifest, run_cli, run_ranks, write_prepared
from transformers import AutoModelForMaskedLM, AutoTokenizer

from dnabert_rm.checkpoint.run_folder import step_folder
from dnabert_rm.export import export_model
from dnabert_rm.genome import kmer
from dnabert_rm.patches.deepspeed_patches import safe_torch_load
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.tokenizer.vocabulary_files import stock_tokenizer
from dnabert_rm.utils import progress
from dnabert_rm.utils.errors import CheckpointError, DataError

K, STEPS = 4, 6
# A hidden size of 36 and 67 positions on 3 ranks: partitions that end within a weight, and padded ones.
FLAGS = (
    "--preset tiny --model.num_layers 1 --model.hidden_size 36 --model.num_heads 3 --model.intermediate_size 50 "
    "--model.max_positions 67 --global-batch 6 --window 66 --log-every 1 --save-every 2 --train.keep_last 0 "
    f"--workers 0 --lr 0.01 --phase-ends 1,2,3,4,6 --steps {STEPS}"
).split()
SQUARE = "bert.encoder.layer.0.attention.self.query.weight"
OBLONG = "bert.encoder.layer.0.intermediate.dense.weight"
EMBEDDING, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    folder, rng = tmp_path_factory.mktemp("data") / "prepared", np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=K)
    return [*FLAGS, "--data", folder]


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on three ranks under ZeRO-3, with checkpoints at steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("run") / "run"
    run_ranks(3, *flags, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model.export(run, tmp_path_factory.mktemp("exports") / "model").folder


def by_deepspeed(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the full weights as DeepSpeed merges them. It can't merge stage 0, where every rank saved all weights."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with safe_torch_load(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if list(checkpoint.glob("*optim_states.pt")):
            found = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        else:
            found = torch.load(checkpoint / "mp_rank_00_model_states.pt")["module"]
    return {name.removeprefix("model."): weight for name, weight in found.items()}


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        (1, ["zero0"]),
        (2, ["zero0"]),
        (3, ["zero1"]),
        (2, ["zero2", "--precision", "bf16"]),
        (2, ["zero3", "--precision", "bf16", "--model.architecture", "modernbert"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_weights_of_every_stage_and_number_of_ranks(flags, tmp_path: Path, ranks: int, words: list[str]) -> None:
    run_ranks(ranks, *flags, "--output", tmp_path / "run", "--stop-after", 1, "--ds-config", *words)
    done = export_model.export(tmp_path / "run", tmp_path / "model", max_shard_size="20KB")
    found = AutoModelForMaskedLM.from_pretrained(done.folder).state_dict()
    expected = by_deepspeed(step_folder(tmp_path / "run", 1))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    assert len(list(done.folder.glob("model-*.safetensors"))) > 3


def test_weights_of_three_ranks_under_stage_3(run: Path, model: Path) -> None:
    found, expected = AutoModelForMaskedLM.from_pretrained(model).state_dict(), by_deepspeed(step_folder(run, 6))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


LOADS = f"""
import sys
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer("acgTNacgta")["input_ids"] == eval(sys.argv[2]), tokenizer("acgTNacgta")
batch = tokenizer(["ACGTTGCAAC", "ACGTN"], padding=True, return_tensors="pt")
for kind in (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification):
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    new = [name for name in info["missing_keys"] if "classifier" not in name and "pooler" not in name]
    assert not new and not info["mismatched_keys"], info
    assert torch.isfinite(model(**batch)[0]).all()
predictions = pipeline("fill-mask", model=folder, tokenizer=folder)("ACGTACGTA[MASK]CGTACG", top_k=3)
assert len(predictions) == 3 and all(len(one["token_str"]) == {K} for one in predictions), predictions
assert "dnabert_rm" not in sys.modules
"""


def test_stock_transformers_loads_an_export_without_this_package(model: Path, tmp_path: Path) -> None:
    """Checks models, tokenizer and fill-mask in a process that can't import this package."""
    ids = [2, *kmer.encode("ACGTNACGTA", K).tolist(), 3]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", LOADS, str(model), repr(ids)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- faults that the self-check must detect


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path, metadata={"format": "pt"})


def change_config(folder: Path, **values) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


def untie(folder: Path) -> None:
    """Give the decoder separate weights with the same values."""
    ties = {DECODER: EMBEDDING, DECODER.replace("weight", "bias"): "cls.predictions.bias"}
    change_weights(folder, lambda weights: weights.update({name: weights[of].clone() for name, of in ties.items()}))
    change_config(folder, tie_word_embeddings=False)


def reorder_tokenizer(folder: Path) -> None:
    """Write the stock tokenizer with its bases in the order A, C, G, T."""
    text = stock_tokenizer(K).to_str()
    content = json.loads(text)
    swap = str.maketrans("TCG", "CGT")
    content["model"]["vocab"] = {
        token if token.startswith("[") else token.translate(swap): i for token, i in content["model"]["vocab"].items()
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


def reorder_embeddings(weights: dict[str, torch.Tensor]) -> None:
    weights[EMBEDDING] = torch.cat([weights[EMBEDDING][:5], weights[EMBEDDING][5:].flip(0)])


def enlarge_vocabulary(folder: Path) -> None:
    """Add a token to the configuration and the weights."""

    def grow(weights: dict[str, torch.Tensor]) -> None:
        for name in (EMBEDDING, "cls.predictions.bias"):
            weights[name] = torch.cat([weights[name], weights[name][-1:]])

    change_weights(folder, grow)
    change_config(folder, vocab_size=kmer.vocab_size(K) + 1)


FAULTS = {
    "untied decoder": (untie, f"{DECODER} is not tied to {EMBEDDING}"),
    "dropped tensor": (lambda f: change_weights(f, lambda w: w.pop(OBLONG)), "missing keys"),
    "added tensor": (lambda f: change_weights(f, lambda w: w.update({"more": w[SQUARE].clone()})), "unexpected keys"),
    "transposed square": (lambda f: change_weights(f, lambda w: w.update({SQUARE: w[SQUARE].T})), f"{SQUARE} differs"),
    "transposed oblong": (lambda f: change_weights(f, lambda w: w.update({OBLONG: w[OBLONG].T})), "cannot load the"),
    "vocabulary in another order": (reorder_tokenizer, "token AAAT has id"),
    "embeddings in another order": (lambda f: change_weights(f, reorder_embeddings), f"{EMBEDDING} differs"),
    "larger vocabulary": (enlarge_vocabulary, f"{EMBEDDING} differs"),
    "other k": (lambda f: (f / "tokenizer.json").write_text(stock_tokenizer(3).to_str()), "tokenizer.json 69, tr"),
    "other vocab.txt": (lambda f: (f / "vocab.txt").write_text(kmer.vocabulary_text(3)), "holds 3-mers"),
    "other activation": (lambda f: change_config(f, hidden_act="relu"), "logits differ"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_export_is_rejected_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The fault is planted into the written folder before the self-check."""
    plant, message = FAULTS[fault]
    write = export_model._write_model

    def write_wrongly(checkpoints, last, folder, max_shard_size):
        done = write(checkpoints, last, folder, max_shard_size)
        plant(folder)
        return done

    monkeypatch.setattr(export_model, "_write_model", write_wrongly)
    with pytest.raises(CheckpointError, match=r"^[^\n]*$") as error:
        export_model.export(run, tmp_path / "new" / "model")
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_model, "_write_model", fill)
    with pytest.raises(DataError, match="No space left"):
        export_model.export(run, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_partitions_that_are_too_short_are_one_line(run: Path, tmp_path: Path) -> None:
    """A checkpoint with a valid manifest whose files hold too few elements."""
    shutil.copytree(run, tmp_path / "run")
    folder = step_folder(tmp_path / "run", 6)
    path = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    with safe_torch_load():
        content = torch.load(path)
    groups = content["optimizer_state_dict"]["fp32_flat_groups"]
    groups[1] = groups[1][:-5].clone()
    torch.save(content, path)
    rewrite_manifest(folder)
    with pytest.raises(CheckpointError, match="elements of a weight are missing"):
        export_model.export(tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ---- means of checkpoints


def test_mean_of_checkpoints(run: Path, tmp_path: Path) -> None:
    done = run_cli("-m", "dnabert_rm.cli.main", "export", run, "--output", tmp_path / "model", "--average", 3)
    assert done.returncode == 0 and "mean of the steps 2, 4, 6" in done.stdout, done.stderr
    found = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").state_dict()
    saved = [by_deepspeed(step_folder(run, step)) for step in (2, 4, 6)]
    for name, weight in found.items():
        torch.testing.assert_close(weight, torch.stack([one[name] for one in saved]).mean(0), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(found[SQUARE], saved[-1][SQUARE], rtol=1e-3)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "mean of the checkpoints of the steps 2, 4, 6" in card and "No run trained this mean" in card


def test_a_long_export_reports_progress(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_SECONDS", 0)
    done = export_model.export(run, tmp_path / "model", average=2)
    lines = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    ends = {line.split(":")[0]: line for line in lines if ":" in line}
    size = f"{4 * done.num_parameters / 1e3:.1f}k"
    for what in ("reading step_00000004", "reading step_00000006", "comparing weights"):
        assert ends[what] == f"{what}: {size} of {size} bytes"
        assert sum(line.startswith(f"{what}:") for line in lines) > 10


def test_the_last_checkpoints_are_averaged(run: Path, tmp_path: Path) -> None:
    assert export_model.find_checkpoints(run, average=2) == [step_folder(run, 4), step_folder(run, 6)]
    assert export_model.find_checkpoints(run, step=4, average=2) == [step_folder(run, 2), step_folder(run, 4)]
    assert export_model.find_checkpoints(step_folder(run, 4), average=2) == [step_folder(run, 2), step_folder(run, 4)]
    assert export_model.find_checkpoints(step_folder(run, 4)) == [step_folder(run, 4)]
    assert export_model.find_checkpoints(step_folder(run, 4), step=4) == [step_folder(run, 4)]
    with pytest.raises(CheckpointError, match=r"--step 2: .*step_00000004 has step 4; omit --step"):
        export_model.find_checkpoints(step_folder(run, 4), step=2)
    for words in ({"average": 4}, {"step": 4, "average": 3}, {"average": 0}, {"step": 3}):
        with pytest.raises(CheckpointError, match=r"average|has no checkpoint of step 3"):
            export_model.export(run, tmp_path / "model", **words)


def test_a_wrong_mean_is_rejected(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean leaves out the first checkpoint."""
    mean = export_model.mean_weights
    monkeypatch.setattr(export_model, "mean_weights", lambda folders: mean(folders[1:]))
    with pytest.raises(CheckpointError, match="differs from the trained weight"):
        export_model.export(run, tmp_path / "model", average=3)
    assert not list(tmp_path.iterdir())


# ---- the model card


def test_the_card_names_the_data_and_the_run(run: Path, model: Path) -> None:
    facts, card = json.loads((model / "pretraining.json").read_text()), (model / "README.md").read_text()
    environment = json.loads((run / "environment.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [phase["last_step"] for phase in facts["phases"]] == [0, 1, 2, 3, 5]
    assert facts["phases"][4]["loss"] == pytest.approx((rows[4]["loss"] + rows[5]["loss"]) / 2)
    assert facts["sources"] == [{"genome": "g", "file": "g.fa", "bytes": 0, "sha256": "0" * 64}]
    assert json.loads((step_folder(run, 6) / "data.json").read_text())["sources"] == facts["sources"]
    state = json.loads((step_folder(run, 6) / "state.json").read_text())
    for text in (
        state["fingerprint"],
        environment["commit"],
        "| genomes | g |",
        "6 (36 windows of 66 tokens)",
        f"| 5 | 12 | 6 | {facts['phases'][4]['loss']:.4f} |",
        "randommask",
        "AutoTokenizer",
    ):
        assert text in card


def test_genomes_come_from_the_data_folder_if_an_old_checkpoint_lacks_them(run: Path, flags, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (step_folder(tmp_path / "run", 6) / "data.json").unlink()
    rewrite_manifest(step_folder(tmp_path / "run", 6))
    export_model.export(tmp_path / "run", tmp_path / "model")
    assert "| genomes | g |" in (tmp_path / "model" / "README.md").read_text()
    shutil.move(tmp_path / "run" / "checkpoints" / "step_00000006", tmp_path / "alone")
    (tmp_path / "alone" / "config.toml").write_text(
        (tmp_path / "alone" / "config.toml").read_text().replace(str(flags[-1]), str(tmp_path))
    )
    rewrite_manifest(tmp_path / "alone")
    export_model.export(tmp_path / "alone", tmp_path / "other")
    card = (tmp_path / "other" / "README.md").read_text()
    assert "| genomes | not recorded |" in card and "commit not recorded" in card


def test_non_overlapping_tokens_are_exported(flags, tmp_path: Path) -> None:
    run_ranks(1, *flags, "--data.overlap", "false", "--stop-after", 1, "--output", tmp_path / "run")
    folder = export_model.export(tmp_path / "run", tmp_path / "model").folder
    for tokenizer in (KmerTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)):
        assert len(tokenizer("ACGT" * 6)["input_ids"]) == 2 + 24 // K
    card = (folder / "README.md").read_text()
    assert f"| non-overlapping {K}-mers" in card
    left, right = re.findall(r'\("(\w+)\[MASK\](\w+)"\)', card)[0]
    assert len(left) % K == len(right) % K == 0


# ---- memory


def export_growth(_, tiny: Path, run: Path, output: Path) -> int:
    """Return by how many bytes memory grows during an export; a tiny export loads the libraries first."""
    export_model.export(tiny, output.with_name("first"))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    export_model.export(run, output)
    return memory("VmHWM") - before


def memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("stage", [2, 3])
def test_memory_is_little_more_than_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    with monkeypatch.context() as patch:  # benchmarks/data_prep.py must not hide the package from later tests
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        from export_memory import TINY, enlarge

    write_prepared(tmp_path / "data", [[random_bases(np.random.default_rng(0), 4000)]])
    words = [*TINY, "--data", tmp_path / "data", "--output", tmp_path / "run", "--ds-config", f"zero{stage}"]
    run_ranks(2, *words)
    shutil.copytree(tmp_path / "run", tmp_path / "tiny")
    enlarge(tmp_path, "small")
    size = 4 * json.loads((tmp_path / "size.json").read_text())
    grown = on_ranks(1, export_growth, tmp_path / "tiny", tmp_path / "run", tmp_path / "model")[0]
    print(f"weights {size / 1e6:.0f} MB; export took {grown / 1e6:.0f} MB")
    assert size > 90e6
    assert grown < 1.7 * size
