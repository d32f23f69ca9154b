"""What an export says of itself: `pretraining.json` for programs, a model card with the loss curve for people."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from dnabert_rm import __version__
from dnabert_rm.checkpoint.run_folder import DATA_NAME, FOLDER_NAME
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig
from dnabert_rm.data.manifest import SourceInfo, TokenizerInfo, load_manifest
from dnabert_rm.train.metrics import METRICS_NAME
from dnabert_rm.utils.errors import DataError, UserError
from dnabert_rm.utils.files import read_json, read_json_lines
from dnabert_rm.utils.system_info import ENVIRONMENT_NAME

PROVENANCE_NAME, CARD_NAME = "pretraining.json", "README.md"
_ROWS_AT_A_PHASES_END = 50
_NAMES_SHOWN = 12


def provenance(
    checkpoint: Path,
    state: TrainState,
    config: RunConfig,
    tokenizer: TokenizerInfo,
    averaged_steps: list[int],
    difference: float,
) -> dict[str, Any]:
    """All that is known of an exported model, for `pretraining.json`; what can't be found out is null or empty."""
    run = checkpoint.parent.parent if checkpoint.parent.name == FOLDER_NAME else checkpoint
    environment = _read_json(run / ENVIRONMENT_NAME)
    return {
        "dnabert_rm": __version__,
        "step": state.step,
        "averaged_steps": averaged_steps,
        "consumed_samples": state.consumed_samples,
        "data_fingerprint": state.fingerprint,
        "sources": training_sources(checkpoint, config, state.fingerprint),
        "tokenizer": dataclasses.asdict(tokenizer),
        "commit": environment.get("commit"),
        "packages": environment.get("packages", {}),
        "world_size": environment.get("world_size"),
        "phases": phases(run / METRICS_NAME, state.step),
        "config": config.to_dict(),
        "max_logit_difference": difference,
    }


def training_sources(checkpoint: Path, config: RunConfig, fingerprint: str) -> list[dict[str, Any]]:
    """Genome, file, bytes and SHA-256 of what was trained on: from the checkpoint, or else the data folder."""
    with contextlib.suppress(DataError, OSError, TypeError):
        if found := _read_json(checkpoint / DATA_NAME).get("sources"):
            return [dataclasses.asdict(SourceInfo(**source)) for source in found]
        manifests = [load_manifest(folder) for folder in config.data.path]
        if "+".join(manifest.fingerprint for manifest in manifests) == fingerprint:
            return [dataclasses.asdict(source) for manifest in manifests for source in manifest.sources]
    return []


def phases(metrics: Path, steps: int) -> list[dict[str, Any]]:
    """How the run stood at the end of each phase of its first `steps` steps: means over the last 50 logged steps."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        rows = [row for row in read_json_lines(metrics) if row["step"] < steps]
        return [_phase_end(list(of_phase)) for _, of_phase in groupby(rows, lambda row: row["phase"])]
    return []


def _phase_end(rows: list[dict[str, Any]]) -> dict[str, Any]:
    last = rows[-_ROWS_AT_A_PHASES_END:]
    means = {key: sum(row[key] for row in last) / len(last) for key in ("loss", "masked_accuracy")}
    return {"phase": rows[-1]["phase"], "last_step": rows[-1]["step"], "max_span": rows[-1]["max_span"], **means}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty where there is none."""
    with contextlib.suppress(UserError):
        return read_json(path)
    return {}


def write_records(folder: Path, facts: dict[str, Any]) -> None:
    """Write `pretraining.json` and the model card."""
    (folder / PROVENANCE_NAME).write_text(json.dumps(facts, indent=1) + "\n")
    (folder / CARD_NAME).write_text(model_card(facts))


def model_card(facts: dict[str, Any]) -> str:
    """The model card of an export, Markdown."""
    table = "\n".join(f"| {name} | {value} |" for name, value in _card_rows(facts).items())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: fill-mask\ntags: [dna, bert, randommask]\n---\n"
        f"# A DNA BERT, pretrained with dnabert_rm {facts['dnabert_rm']}\n\n| | |\n|---|---|\n{table}\n\n"
        f"{_curve(facts['phases'])}## Use\n\n{_USE[facts['tokenizer']['kind']]}\n"
        f"Everything else that was set is in `{PROVENANCE_NAME}`.\n"
    )


def _card_rows(facts: dict[str, Any]) -> dict[str, str]:
    config, tokenizer, averaged = facts["config"], facts["tokenizer"], facts["averaged_steps"]
    model, masking = config["model"], config["masking"]
    checked = f"logits differ by {facts['max_logit_difference']:.1e} of the largest"
    rows = {
        "architecture": f"{model['architecture']}, {model['num_layers']} layers x {model['hidden_size']}, "
        f"{model['max_positions']} positions",
        "tokens": f"{tokenizer['kind']}, k = {tokenizer['k']}, vocabulary of {tokenizer['vocab_size']}",
        "genomes": _names([source["genome"] for source in facts["sources"]]),
        "data fingerprint": f"`{facts['data_fingerprint']}`",
        "masking": f"{masking['policy']}, centre rate {masking['centre_rate']}, draw {masking['draw']}",
        "steps": f"{facts['step']} ({facts['consumed_samples']} windows of {config['data']['window']} tokens)",
        "strand, overlap": f"{config['data']['strand']}, {config['data']['overlap']}",
        "seed": str(config["train"]["seed"]),
        "training code": f"commit `{facts['commit']}`" if facts["commit"] else "commit not recorded",
    }
    if len(averaged) == 1:
        rows["checked"] = f"every weight against the checkpoint; against the training model, {checked}"
    else:
        rows["weights"] = f"mean of the checkpoints of the steps {', '.join(map(str, averaged))}"
        rows["checked"] = (
            "every weight against a mean computed in another way; against the averaged weights in the training code's "
            f"model, {checked}. No run had this mean, so there are no answers of a training run to compare with"
        )
    return rows


def _names(names: list[str]) -> str:
    """Names from files, once each, safe in a table."""
    known = [" ".join(name.replace("|", "/").split()) for name in dict.fromkeys(names)]
    more = f" and {len(known) - _NAMES_SHOWN} more (`{PROVENANCE_NAME}`)" if len(known) > _NAMES_SHOWN else ""
    return ", ".join(known[:_NAMES_SHOWN]) + more if known else "not recorded"


def _curve(ends: list[dict[str, Any]]) -> str:
    """The loss at the end of each phase as a table."""
    if not ends:
        return ""
    lines = [
        f"| {end['phase']} | {end['max_span']} | {end['last_step'] + 1} | {end['loss']:.4f} | "
        f"{end['masked_accuracy']:.4f} |"
        for end in ends
    ]
    return (
        "## Curve\n\nMeans over the last 50 logged steps of each phase. A wider span is a harder task, so the loss "
        "may rise from one phase to the next.\n\n| phase | spans up to | steps done | loss | masked accuracy |\n"
        "|---|---|---|---|---|\n" + "\n".join(lines) + "\n\n"
    )


_USE = {
    "kmer": """\
```python
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

tokenizer = AutoTokenizer.from_pretrained("HERE")
model = AutoModelForMaskedLM.from_pretrained("HERE")
logits = model(**tokenizer("ACGTACGTTAGC", return_tensors="pt")).logits
pipeline("fill-mask", model=model, tokenizer=tokenizer)("ACGTACGT[MASK]TTAGCATT")
```

Raw DNA goes in, upper or lower case. No code but transformers is needed; after `import dnabert_rm.tokenizer` the same
lines give a tokenizer with the same ids that is many times faster.
""",
    "bpe": """\
```python
from transformers import AutoModelForMaskedLM

model = AutoModelForMaskedLM.from_pretrained("HERE")
```

Ids are those of the SentencePiece model that the data were prepared with, between `[CLS]` (2) and `[SEP]` (3).
""",
}
