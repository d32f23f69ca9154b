"""The model card has the bits per base of the last validation before the exported step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from validated_rows import rows_of, validation, write_run

from dnabert_rm.config import resolve
from dnabert_rm.export.model_card import last_validation, model_card

TABLE = """\
| hidden bases | model | composition | Markov order 2 | Markov order 5 | Markov order 8 | guessing |
|---:|---:|---:|---:|---:|---:|---:|
| 1 | 1.700 | 1.987 | 1.980 | 1.940 | 1.850 | 2.000 |
| 3 | 1.800 | 1.987 | 1.980 | 1.940 | 1.890 | 2.000 |
| 5 | 1.900 | 1.987 | 1.980 | 1.940 | 1.930 | 2.000 |
| 9 | 1.950 | 1.987 | 1.980 | 1.940 | 1.950 | 2.000 |

## """


def facts(found: dict[str, Any] | None, averaged_steps: list[int]) -> dict[str, Any]:
    config = resolve({"data": {"path": ["d"]}, "train": {"output": "run"}}).to_dict()
    tokenizer = {"kind": "kmer", "vocab_size": 4101, "k": 6}
    phases = [{"phase": 1, "max_span": 6, "last_step": 99, "loss": 7.0, "masked_accuracy": 0.1}]
    unknown = dict.fromkeys(("dnabert_rm", "step", "consumed_samples", "init_from", "commit"))
    return unknown | {
        "config": config,
        "tokenizer": tokenizer,
        "phases": phases,
        "validation": found,
        "sources": [],
        "earlier_data": [],
        "data_fingerprint": "f1n9e2",
        "averaged_steps": averaged_steps,
        "max_logit_difference": 0.0,
    }


def test_the_last_validation_is_before_the_exported_step(tmp_path: Path) -> None:
    metrics = write_run(tmp_path / "run", rows_of([validation(1.9), None, validation(1.8)])) / "metrics.jsonl"
    assert last_validation(metrics, 300) == {"steps": 300, **validation(1.8)}
    assert last_validation(metrics, 299) == last_validation(metrics, 100) == {"steps": 100, **validation(1.9)}
    assert last_validation(metrics, 99) is None and last_validation(tmp_path / "none", 99) is None


def test_the_card_has_the_bits_with_markov_line_and_fingerprint() -> None:
    card = model_card(facts({"steps": 100, **validation(1.9)}, [100]))
    section = card[card.index("## Held-out bits per base") :]
    assert section.startswith(
        "## Held-out bits per base\n\nMeasured after 100 steps. The data have the fingerprint\n`f1n9e2`.\n"
    )
    assert "The Markov line of these data has order 8. A model with more bits predicts worse" in section
    assert TABLE + "Curve" in section
    averaged = model_card(facts({"steps": 100, **validation(1.9)}, [50, 100]))
    assert "Measured at step 100, before averaging." in averaged


def test_a_card_without_bits_has_no_such_section() -> None:
    for found in (None, {"steps": 100, **validation(None)}):
        assert "bits per base" not in model_card(facts(found, [100]))
