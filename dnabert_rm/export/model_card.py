"""Provenance of an export: `pretraining.json` for programs, and a model card for people."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from dnabert_rm import __version__
from dnabert_rm.checkpoint.run_folder import DATA_NAME, ENVIRONMENT_NAME, FOLDER_NAME, METRICS_NAME
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig
from dnabert_rm.data.manifest import SourceInfo, TokenizerInfo, load_manifest
from dnabert_rm.data.object_store import without_secrets
from dnabert_rm.export.masked_example import masked_example
from dnabert_rm.model.pretrained import PROVENANCE_NAME
from dnabert_rm.train.validation_record import LAST_ROWS, bits_table, markov_order, read_validations, validation_of
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import read_json_lines, read_json_or_empty

CARD_NAME = "README.md"
CARD_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
OLDEST_TRANSFORMERS = {"bert": "4.40", "modernbert": "5.17"}
"""First release of transformers that loads an export correctly.

Releases before 5.17 would use local attention in some layers of ModernBERT.
"""
_NAMES_SHOWN = 12
_HUB_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)", re.IGNORECASE)


def provenance(
    checkpoint: Path,
    state: TrainState,
    config: RunConfig,
    tokenizer: TokenizerInfo,
    averaged_steps: list[int],
    difference: float,
) -> dict[str, Any]:
    """Return the content of `pretraining.json`. Unknown values are null or empty."""
    run = checkpoint.parent.parent if checkpoint.parent.name == FOLDER_NAME else checkpoint
    environment = read_json_or_empty(run / ENVIRONMENT_NAME)
    records = read_json_or_empty(checkpoint / DATA_NAME)
    return {
        "dnabert_rm": __version__,
        "step": state.step,
        "averaged_steps": averaged_steps,
        "consumed_samples": state.consumed_samples,
        "data_fingerprint": state.fingerprint,
        "sources": training_sources(checkpoint, config, state.fingerprint),
        "init_from": records.get("init_from"),
        "earlier_data": records.get("earlier") or [],
        "tokenizer": dataclasses.asdict(tokenizer),
        "commit": environment.get("commit"),
        "packages": environment.get("packages", {}),
        "world_size": environment.get("world_size"),
        "validation": last_validation(run / METRICS_NAME, state.step),
        "phases": phases(run / METRICS_NAME, state.step),
        "config": _without_secrets(config.to_dict()),
        "max_logit_difference": difference,
    }


def _without_secrets(config: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a configuration whose URLs of data have no signature or password, because exports are published."""
    return {**config, "data": {**config["data"], "path": [without_secrets(path) for path in config["data"]["path"]]}}


def training_sources(checkpoint: Path, config: RunConfig, fingerprint: str) -> list[dict[str, Any]]:
    """Return the genome, name, size and SHA-256 of each FASTA file that the training data were built from.

    The values are from the checkpoint. If the checkpoint does not record them, the values are from the data folders.
    The result is empty if the data folders have changed or can't be read.
    """
    with contextlib.suppress(DataError, OSError, TypeError):
        if found := read_json_or_empty(checkpoint / DATA_NAME).get("sources"):
            return [dataclasses.asdict(SourceInfo(**source)) for source in found]
        manifests = [load_manifest(folder) for folder in config.data.path]
        if "+".join(manifest.fingerprint for manifest in manifests) == fingerprint:
            return [dataclasses.asdict(source) for manifest in manifests for source in manifest.sources]
    return []


def phases(metrics: Path, steps: int) -> list[dict[str, Any]]:
    """Return the training loss and masked accuracy at the end of each masking phase in the first `steps` steps.

    Loss and accuracy are means over the last `LAST_ROWS` logged steps of the phase. `metrics` is a run's metrics.jsonl.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        rows = [row for row in read_json_lines(metrics) if row["step"] < steps]
        return [_phase_end(list(phase_rows)) for _, phase_rows in groupby(rows, lambda row: row["phase"])]
    return []


def _phase_end(rows: list[dict[str, Any]]) -> dict[str, Any]:
    last = rows[-LAST_ROWS:]
    means = {key: sum(row[key] for row in last) / len(last) for key in ("loss", "masked_accuracy")}
    return {"phase": rows[-1]["phase"], "last_step": rows[-1]["step"], "max_span": rows[-1]["max_span"], **means}


def last_validation(metrics: Path, steps: int) -> dict[str, Any] | None:
    """Return the results of the last validation in the first `steps` steps, or None if there is none.

    The entry "steps" of the result is the number of steps completed by then. `metrics` is a run's metrics.jsonl.
    """
    rows = read_validations(metrics, steps)
    return {"steps": rows[-1]["step"] + 1, **validation_of(rows[-1])} if rows else None


def write_card_and_provenance(folder: Path, facts: dict[str, Any], license_id: str | None = None) -> None:
    """Write `pretraining.json` and the model card (README.md) to `folder`, which has the tokenizer.

    `facts` is the result of `provenance`. `license_id` is the license in the card, as the hub writes it.
    """
    (folder / PROVENANCE_NAME).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    tokenizer = TokenizerInfo(**facts["tokenizer"])
    config = facts["config"]
    masked_text = masked_example(folder, tokenizer, config["model"]["max_positions"], config["data"]["overlap"])
    (folder / CARD_NAME).write_text(model_card(facts, license_id, masked_text), encoding="utf-8")


def card_header(facts: dict[str, Any], license_id: str | None, masked_text: str | None) -> str:
    """Return the metadata that the hub reads, as YAML. Unknown fields are left out.

    Fields: https://huggingface.co/docs/hub/model-cards. `datasets` has only data sets of the hub, so it is known only
    for runs that read their data from there.
    """
    from huggingface_hub import ModelCardData

    policy = facts["config"]["masking"]["policy"]
    tags = ["dna", "genomics", "biology", facts["config"]["model"]["architecture"]]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask",
        license=license_id,
        tags=[*tags, "randommask"] if policy.startswith("randommask") else tags,
        datasets=_hub_datasets(facts["config"]["data"]["path"]),
        widget=[{"text": masked_text}] if masked_text else None,
    ).to_yaml()


def _hub_datasets(paths: Iterable[str]) -> list[str] | None:
    """Return OWNER/NAME of each `hf://datasets/OWNER/NAME…` among `paths`, or None if there is none."""
    found = [_HUB_DATASET.match(str(path)) for path in paths]
    return list(dict.fromkeys(match[1] for match in found if match)) or None


def model_card(facts: dict[str, Any], license_id: str | None = None, masked_text: str | None = None) -> str:
    """Render the model card as Markdown.

    `facts` is the result of `provenance`, and `masked_text` an example for fill-mask, or None if there is none.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(CARD_TEMPLATE.read_text(encoding="utf-8"))
    validation = facts["validation"] or {}
    return template.render(
        facts=facts,
        header=card_header(facts, license_id, masked_text),
        masked_text=masked_text or "ACGTACGT[MASK]TTAGCATT",
        bits=bits_table(validation),
        markov_order=markov_order(validation),
        genomes=_genomes,
        oldest=OLDEST_TRANSFORMERS[facts["config"]["model"]["architecture"]],
    )


def _genomes(sources: list[dict[str, Any]]) -> str:
    """Join the distinct genome names of `sources` for a cell of a Markdown table, without "|" and line breaks."""
    names = dict.fromkeys(source["genome"] for source in sources)
    known = [" ".join(name.replace("|", "/").split()) for name in names]
    more = f" and {len(known) - _NAMES_SHOWN} more (`{PROVENANCE_NAME}`)" if len(known) > _NAMES_SHOWN else ""
    return ", ".join(known[:_NAMES_SHOWN]) + more if known else "not recorded"
