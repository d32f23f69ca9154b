"""A checkpoint of any ZeRO stage and number of ranks → one Hugging Face folder that has checked itself.

The folder is written aside and becomes visible only after stock transformers has loaded it and given
the training model's own answers (`probe.npz` of the checkpoint).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from dnabert_rm import __version__
from dnabert_rm.config import RunConfig, resolve
from dnabert_rm.errors import CheckpointError, DataError
from dnabert_rm.shards import TokenizerInfo
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.train.architecture import architecture_of
from dnabert_rm.train.checkpoint import check_checkpoint
from dnabert_rm.train.probe import Probe, load_probe
from dnabert_rm.train.run_folder import CONFIG_NAME, PROBE_NAME, TOKENIZER_NAME, complete_steps, read_state, step_folder
from dnabert_rm.train.safe_load import safe_torch_load
from dnabert_rm.train.state import TrainState

MODULE_PREFIX = "model."
"""Where `model.mlm.MaskedLM` keeps the transformers model."""
TOLERANCE = {("fp32", "cpu"): 1e-5, ("fp32", "cuda"): 5e-3, ("bf16", "cpu"): 3e-2, ("bf16", "cuda"): 3e-2}
"""Largest difference of logits, as a share of the largest logit (at least 1), by precision and device of the
training: a GPU may use TF32 for fp32."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROVENANCE_NAME = "pretraining.json"


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, and how far its logits are from the training model's."""

    folder: Path
    step: int
    num_parameters: int
    max_difference: float


def find_checkpoint(path: Path, step: int | None = None) -> Path:
    """A run folder's last complete checkpoint, or that of `step`, or `path` itself where it is a checkpoint."""
    if (path / CONFIG_NAME).is_file() and (path / PROBE_NAME).is_file():
        return path
    steps = complete_steps(path)
    if not steps:
        raise CheckpointError(f"{path}: holds no complete checkpoint; name a run folder or a step_… folder")
    if step is not None and step not in steps:
        raise CheckpointError(f"{path}: has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    return step_folder(path, steps[-1] if step is None else step)


def export(source: str | Path, output: str | Path, step: int | None = None) -> Exported:
    """Write the model of a run or checkpoint to the new folder `output`.

    Raises `CheckpointError` where the checkpoint is damaged or the written model is not the trained one; then
    nothing is left behind. `DataError` where `output` exists.
    """
    checkpoint, output = find_checkpoint(Path(source), step), Path(output)
    if output.exists():
        raise DataError(f"{output}: exists already; name a new folder or remove it")
    state, config, tokenizer, probe = _read_records(checkpoint)
    model = _trained_model(checkpoint, config, tokenizer)
    aside = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        model.save_pretrained(aside)
        _save_tokenizer(tokenizer, config, aside)
        difference = check_exported(aside, model.state_dict(), probe)
        _write_provenance(aside, checkpoint, state, config, tokenizer, difference)
        os.rename(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(output, state.step, model.num_parameters(), difference)


def _read_records(checkpoint: Path) -> tuple[TrainState, RunConfig, TokenizerInfo, Probe]:
    """All that a checkpoint says of itself; `CheckpointError` where a record is damaged."""
    check_checkpoint(checkpoint)
    state, probe = read_state(checkpoint), load_probe(checkpoint / PROBE_NAME)
    try:
        config = resolve(tomllib.loads((checkpoint / CONFIG_NAME).read_text()))
        tokenizer = TokenizerInfo(**json.loads((checkpoint / TOKENIZER_NAME).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: its records cannot be read ({error}); use another checkpoint") from None
    return state, config, tokenizer, probe


def _trained_model(checkpoint: Path, config: RunConfig, tokenizer: TokenizerInfo) -> PreTrainedModel:
    """The transformers model with the checkpoint's master weights, fp32, on the CPU."""
    architecture = architecture_of(config.model, tokenizer.vocab_size, checkpoint)
    model = AutoModelForMaskedLM.from_config(architecture, dtype=torch.float32)
    weights = consolidated_weights(checkpoint)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{checkpoint}: its weights do not fit its configuration ({reason})") from None
    return model.eval()


def consolidated_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The full fp32 weights by transformers' names, from the partitions that the ranks saved."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # DeepSpeed reports its steps and draws bars for what takes a moment.
    silence = io.StringIO()
    with safe_torch_load(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    return {name.removeprefix(MODULE_PREFIX): tensor.float() for name, tensor in weights.items()}


def check_exported(folder: Path, trained: dict[str, Tensor], probe: Probe) -> float:
    """Load `folder` with stock transformers and compare it with the trained weights and the probe.

    Returns the largest difference of logits as a share of the largest logit; `CheckpointError` says what is wrong.
    """
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise CheckpointError(f"export: {kind.replace('_', ' ')}: {sorted(info[kind])[:3]}")
    loaded = model.state_dict()
    if loaded.keys() != trained.keys():
        raise CheckpointError(f"export: other weights than trained: {sorted(loaded.keys() ^ trained.keys())[:3]}")
    for name, weight in trained.items():
        if not torch.equal(loaded[name], weight):
            raise CheckpointError(f"export: {name} is not the trained weight")
    decoder, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if decoder.data_ptr() != embedding.data_ptr():
        raise CheckpointError("export: the decoder is not tied to the embedding")
    return _compare_logits(model, probe)


def _compare_logits(model: PreTrainedModel, probe: Probe) -> float:
    """Largest difference from the training model's logits, in its own precision, as a share of the largest logit."""
    if model.config.vocab_size != probe.logits.shape[1]:
        raise CheckpointError(
            f"export: a vocabulary of {model.config.vocab_size}, but {probe.logits.shape[1]} logits were trained"
        )
    model = model.to(dtype=DTYPES[probe.precision]).eval()  # type: ignore[call-arg]
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(probe.input_ids)).logits
    found = logits.flatten(0, 1)[torch.from_numpy(probe.positions)].float().numpy()
    difference = float(np.abs(found - probe.logits).max() / max(1.0, np.abs(probe.logits).max()))
    allowed = TOLERANCE.get((probe.precision, probe.device), 3e-2)
    if not difference <= allowed:
        raise CheckpointError(
            f"export: logits differ from the training model's by {difference:.2g} of the largest (limit {allowed:.2g})"
        )
    return difference


def _save_tokenizer(tokenizer: TokenizerInfo, config: RunConfig, folder: Path) -> None:
    if tokenizer.kind == "kmer":
        assert tokenizer.k is not None
        KmerTokenizer(k=tokenizer.k, model_max_length=config.model.max_positions).save_pretrained(folder)


def _write_provenance(
    folder: Path, checkpoint: Path, state: TrainState, config: RunConfig, tokenizer: TokenizerInfo, difference: float
) -> None:
    """`pretraining.json` for programs and a model card for people."""
    facts: dict[str, Any] = {
        "dnabert_rm": __version__,
        "step": state.step,
        "consumed_samples": state.consumed_samples,
        "data_fingerprint": state.fingerprint,
        "tokenizer": dataclasses.asdict(tokenizer),
        "config": config.to_dict(),
        "max_logit_difference": difference,
    }
    (folder / PROVENANCE_NAME).write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "README.md").write_text(model_card(facts))


def model_card(facts: dict[str, Any]) -> str:
    """The model card of an export, Markdown."""
    config, tokenizer = facts["config"], facts["tokenizer"]
    model, masking = config["model"], config["masking"]
    rows = {
        "architecture": f"{model['architecture']}, {model['num_layers']} layers x {model['hidden_size']}, "
        f"{model['max_positions']} positions",
        "tokens": f"{tokenizer['kind']}, k = {tokenizer['k']}, vocabulary of {tokenizer['vocab_size']}",
        "masking": f"{masking['policy']}, centre rate {masking['centre_rate']}, draw {masking['draw']}",
        "steps": f"{facts['step']} ({facts['consumed_samples']} windows of {config['data']['window']} tokens)",
        "data fingerprint": f"`{facts['data_fingerprint']}`",
        "strand, overlap": f"{config['data']['strand']}, {config['data']['overlap']}",
        "seed": str(config["train"]["seed"]),
        "logits against the training model": f"differ by {facts['max_logit_difference']:.1e} of the largest",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: fill-mask\ntags: [dna, bert, randommask]\n---\n"
        f"# A DNA BERT, pretrained with dnabert_rm {facts['dnabert_rm']}\n\n| | |\n|---|---|\n{table}\n\n"
        "```python\nfrom transformers import AutoModelForMaskedLM\nfrom dnabert_rm.tokenizer import KmerTokenizer\n\n"
        'tokenizer = KmerTokenizer.from_pretrained("HERE")\nmodel = AutoModelForMaskedLM.from_pretrained("HERE")\n'
        'logits = model(**tokenizer("ACGTACGTTAGC", return_tensors="pt")).logits\n```\n\n'
        f"Everything else that was set is in `{PROVENANCE_NAME}`.\n"
    )
