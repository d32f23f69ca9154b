"""Our model against transformers', with the same weights and labels."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from dnabert_rm.genome import kmer
from dnabert_rm.model.build import build_model, encoder_layers, prepare_layers, transformers_config
from dnabert_rm.model.mlm import MaskedLM, num_right_bases

SIZES = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 128,
    "max_positions": 64,
    "dropout": 0.0,
}


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return input ids and labels (3, 40), positions and targets (M,)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 4101, (3, 40), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.2, ids, -100)
    positions = (labels.flatten() != -100).nonzero()[:, 0]
    return ids, labels, positions, labels.flatten()[positions]


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_logits_loss_and_gradients_equal_transformers(architecture: str) -> None:
    config = transformers_config(architecture=architecture, vocab_size=4101, **SIZES)
    theirs = AutoModelForMaskedLM.from_config(config)
    ours = MaskedLM(build_model(config, seed=0), k=6)
    ours.model.load_state_dict(theirs.state_dict())
    ids, labels, positions, targets = batch()

    expected = theirs(input_ids=ids, labels=labels)
    loss_sum, _, num_right, _ = ours(ids, positions, targets)
    logits = ours(ids, positions)
    torch.testing.assert_close(logits, expected.logits.flatten(0, 1)[positions], rtol=0, atol=1e-5)
    torch.testing.assert_close(loss_sum / len(targets), expected.loss, rtol=1e-6, atol=0)
    assert num_right == (expected.logits.flatten(0, 1)[positions].argmax(-1) == targets).sum()

    expected.loss.backward()
    (loss_sum / len(targets)).backward()
    for (name, mine), (_, reference) in zip(ours.model.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_activation_checkpointing_is_switched_on_without_a_warning(architecture: str) -> None:
    model = build_model(transformers_config(architecture=architecture, vocab_size=69, **SIZES), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_layers(model, checkpointing=True, compiled=False)
    assert all(layer.gradient_checkpointing for layer in encoder_layers(model))


def test_a_batch_without_a_masked_token_has_loss_and_gradient_zero() -> None:
    model = MaskedLM(build_model(transformers_config(architecture="bert", vocab_size=69, **SIZES), seed=0))
    loss_sum, _, num_right, _ = model(torch.randint(5, 69, (2, 10)), torch.tensor([0]), torch.tensor([-100]))
    loss_sum.backward()
    assert (loss_sum.item(), num_right.item()) == (0.0, 0)
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


def test_right_bases_are_those_of_a_comparison_of_letters() -> None:
    """Both k-mers are decoded; special tokens and ignored targets have no right base."""
    words = kmer.vocabulary_text(3).split()
    rng = np.random.default_rng(0)
    predicted, targets = rng.integers(0, len(words), (2, 500))
    targets[:50] = -100
    expected = sum(
        a == b
        for guess, target in zip(predicted, targets, strict=True)
        if guess >= 5 and target >= 5
        for a, b in zip(words[guess], words[target], strict=True)
    )
    assert num_right_bases(torch.from_numpy(predicted), torch.from_numpy(targets), 3) == expected > 200
    assert num_right_bases(torch.from_numpy(predicted), torch.from_numpy(targets), None) == 0


def test_weights_depend_on_the_seed_only() -> None:
    config = transformers_config(architecture="bert", vocab_size=69, **SIZES)
    first = build_model(config, seed=1).state_dict()
    torch.rand(7)
    again, other = build_model(config, seed=1).state_dict(), build_model(config, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["bert.embeddings.word_embeddings.weight"], other["bert.embeddings.word_embeddings.weight"]
    )


def bert_settings(config: BertConfig) -> dict[str, object]:
    """Return the settings of a BERT that change its outputs or first weights, but not the shapes of its weights."""
    names = ("hidden_act", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")
    return {name: getattr(config, name) for name in (*names, "num_attention_heads", "is_decoder", "pad_token_id")}


def test_a_bert_has_the_settings_of_its_publication() -> None:
    """Devlin et al. (2019) and their code: GELU, dropout 0.1, weights from a normal distribution of deviation 0.02."""
    config = transformers_config(architecture="bert", vocab_size=69, **(SIZES | {"dropout": 0.1}))
    assert bert_settings(config) == {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "num_attention_heads": 2,
        "is_decoder": False,
        "pad_token_id": 0,
    }
    weights = build_model(config, seed=0).state_dict()
    for name in ("embeddings.word_embeddings", "encoder.layer.1.attention.self.query", "encoder.layer.0.output.dense"):
        assert weights[f"bert.{name}.weight"].std().item() == pytest.approx(0.02, rel=0.05), name


def test_base_is_dnaberts_model(test_data: Path) -> None:
    """The `base` preset has the parameters of DNABERT's own configuration, name for name and shape for shape."""
    from dnabert_rm.config import load_preset

    dnabert = json.loads((test_data / "dnabert" / "6" / "config.json").read_text())
    preset = {**load_preset("base")["model"]}
    with torch.device("meta"):
        theirs = BertForMaskedLM(BertConfig(**{key: value for key, value in dnabert.items() if key != "architectures"}))
        ours = BertForMaskedLM(transformers_config(vocab_size=4101, max_positions=512, **preset))
    shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in (theirs, ours)]
    assert shapes[0] == shapes[1]
    assert bert_settings(ours.config) == bert_settings(theirs.config)
