"""The model card has metadata for the hub, and the bits per base of the last validation before the exported step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from support import random_bases
from transformers import AutoTokenizer
from validated_rows import rows_of, validation, write_run

from data_prep.bpe import train
from dnabert_rm.config import resolve
from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.export.masked_example import CONSERVED, masked_example
from dnabert_rm.export.model_card import last_validation, model_card
from dnabert_rm.export.tokenizer import check_tokenizer, write_tokenizer
from dnabert_rm.genome import kmer
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.tokenizer.bpe_tokenizer import BpeTokenizer, write_bpe_files
from dnabert_rm.utils.errors import CheckpointError

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


def test_the_header_is_the_metadata_of_the_hub() -> None:
    """huggingface_hub reads the same fields back. Unknown fields are left out."""
    known = facts(None, [100])
    assert ModelCard(model_card(known)).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["dna", "genomics", "biology", "bert", "randommask"],
    }
    known["config"]["data"]["path"] = ["hf://datasets/lab/genomes@v1/fly", "hf://datasets/lab/genomes", "local/data"]
    known["config"]["masking"]["policy"] = "fixed"
    known["config"]["model"]["architecture"] = "modernbert"
    card = model_card(known, "cc-by-4.0", "ACGT[MASK]GTAC")
    assert ModelCard(card).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "license": "cc-by-4.0",
        "datasets": ["lab/genomes"],
        "tags": ["dna", "genomics", "biology", "modernbert"],
        "widget": [{"text": "ACGT[MASK]GTAC"}],
    }
    assert '("ACGT[MASK]GTAC")' in card and card.startswith("---\n") and "\n---\n# A DNA BERT" in card


@pytest.mark.parametrize("k", [3, 6, 8])
@pytest.mark.parametrize("max_positions", [16, 512])
def test_the_masked_kmer_follows_from_its_neighbours(tmp_path: Path, k: int, max_positions: int) -> None:
    KmerTokenizer(k=k, model_max_length=max_positions).save_pretrained(tmp_path)
    text = masked_example(tmp_path, TokenizerInfo("kmer", kmer.vocab_size(k), k), max_positions)
    assert text is not None
    left, right = text.split("[MASK]")
    sequence = left + right[k - 2 :]
    assert CONSERVED.startswith(sequence) and len(left) >= k and len(right) >= k
    ids = [kmer.CLS_ID, *kmer.encode(sequence, k).tolist(), kmer.SEP_ID]
    ids[2 + len(left) - k] = kmer.MASK_ID
    assert KmerTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids and len(ids) <= max_positions


@pytest.mark.parametrize("vocab_size", [50, 200, 600])
@pytest.mark.parametrize("max_positions", [12, 512])
def test_one_token_of_bpe_is_masked(tmp_path: Path, vocab_size: int, max_positions: int) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "bpe.model").write_bytes(train((random_bases(rng, 200) for _ in range(500)), vocab_size))
    write_bpe_files(tmp_path, tmp_path / "bpe.model", max_positions)
    text = masked_example(tmp_path, TokenizerInfo("bpe", vocab_size), max_positions)
    assert text is not None
    left, right = text.split("[MASK]")
    tokenizer = BpeTokenizer(tmp_path)
    whole, found = (tokenizer.token_ids([one])[0].tolist() for one in (CONSERVED, text))
    assert CONSERVED.startswith(left) and right in CONSERVED and left and right
    masked = found.index(kmer.MASK_ID)
    assert [*found[:masked], whole[masked], *found[masked + 1 :]] == whole[: len(found)]
    assert len(found) == min(len(whole), max_positions - 2)


def test_no_tokenizer_no_example(tmp_path: Path) -> None:
    assert masked_example(tmp_path, TokenizerInfo("bpe", 200), 512) is None


@pytest.mark.parametrize("k", [3, 6, 8])
@pytest.mark.parametrize("max_positions", [8, 512])
def test_non_overlapping_tokens_around_a_mask(tmp_path: Path, k: int, max_positions: int) -> None:
    KmerTokenizer(k=k, overlapping=False, model_max_length=max_positions).save_pretrained(tmp_path)
    text = masked_example(tmp_path, TokenizerInfo("kmer", kmer.vocab_size(k), k), max_positions, overlapping=False)
    assert text is not None
    left, right = text.split("[MASK]")
    start = CONSERVED.index(right)
    assert CONSERVED.startswith(left) and len(left) + k == start and right
    ids = KmerTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    whole = kmer.encode(CONSERVED, k)[::k].tolist()[: max_positions - 2]
    whole[len(left) // k] = kmer.MASK_ID
    assert ids == [kmer.CLS_ID, *whole, kmer.SEP_ID]


@pytest.mark.parametrize(("overlap", "shown"), [(True, "| overlapping 6-mers"), (False, "| non-overlapping 6-mers")])
def test_tokenizer_and_card_have_the_stride_of_pretraining(tmp_path: Path, overlap: bool, shown: str) -> None:
    config = resolve({"data": {"path": ["d"], "overlap": overlap}, "train": {"output": "run"}})
    known = facts(None, [100])
    known["config"] = config.to_dict()
    assert shown in model_card(known)
    trained = TokenizerInfo("kmer", kmer.vocab_size(3), 3)
    write_tokenizer(tmp_path, trained, config, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": kmer.vocab_size(3)}))
    check_tokenizer(tmp_path, trained, overlap)
    stock = AutoTokenizer.from_pretrained(tmp_path)("ACGTACGTAC")["input_ids"]
    assert len(stock) == 2 + (8 if overlap else 3)
    with pytest.raises(CheckpointError, match="token ids of KmerTokenizer differ"):
        check_tokenizer(tmp_path, trained, not overlap)
