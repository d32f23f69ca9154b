"""`model.rope_period`: rotary positions whose fastest frequency has a given period, in stock transformers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from dnabert_rm.checkpoint.reference_output import ReferenceOutput, reference_input
from dnabert_rm.config import ModelConfig
from dnabert_rm.export.self_check import compare_logits
from dnabert_rm.model.build import architecture_of, build_model
from dnabert_rm.model.pretrained import model_fields

SIZES = {"hidden_size": 32, "num_layers": 4, "num_heads": 2, "intermediate_size": 48}
TOKENS = torch.arange(5, 69)[None]


def model_of(period: float, max_positions: int = 128) -> PreTrainedModel:
    model = ModelConfig(architecture="modernbert", max_positions=max_positions, rope_period=period, **SIZES)
    built = build_model(architecture_of(model, 69), seed=1).eval()
    for name, weight in built.named_parameters():
        if "attn.Wqkv" in name:
            weight.data.mul_(20)  # with initial weights attention is all but uniform
    return built


@pytest.mark.parametrize("max_positions", [128, 2048])  # with global layers only, and with sliding ones
def test_a_period_is_a_scale_of_the_positions(max_positions: int) -> None:
    scaled = torch.arange(64)[None] * (2 * math.pi / 3)
    with torch.no_grad():
        expected = model_of(0.0, max_positions)(TOKENS, position_ids=scaled).logits
        found = model_of(3.0, max_positions)(TOKENS).logits
        plain = model_of(0.0, max_positions)(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - plain).abs().max() > 1e-3


def test_the_fastest_frequency_has_the_period() -> None:
    frequencies = dict(model_of(3.0).named_buffers())["model.rotary_emb.full_attention_inv_freq"]
    assert float(frequencies.max()) == pytest.approx(2 * math.pi / 3)
    plain = dict(model_of(0.0).named_buffers())["model.rotary_emb.full_attention_inv_freq"]
    torch.testing.assert_close(frequencies / plain, torch.full_like(plain, 2 * math.pi / 3))


@pytest.mark.parametrize("period", [0.0, 2.5, 3.0, 10.5])
def test_a_saved_model_keeps_the_period(tmp_path: Path, period: float) -> None:
    model = model_of(period)
    model.save_pretrained(tmp_path)
    assert model_fields(tmp_path)["rope_period"] == period
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(stock(TOKENS).logits, model(TOKENS).logits)
    again = architecture_of(ModelConfig(architecture="modernbert", **SIZES), 69, checkpoint=tmp_path)
    assert again.rope_parameters == model.config.rope_parameters


def test_the_check_of_an_export_rounds_parameters_only_as_training_does() -> None:
    """DeepSpeed keeps the frequencies in fp32. The error of a rounded frequency grows with the distance of tokens."""
    input_ids, positions = reference_input(69, 64)
    trained = model_of(3.0)
    for weight in trained.parameters():
        weight.data = weight.data.bfloat16()
    with torch.no_grad():
        logits = trained(input_ids=torch.from_numpy(input_ids)).logits.flatten(0, 1)[torch.from_numpy(positions)]
    reference = ReferenceOutput(input_ids, positions, logits.float().numpy(), "bf16", "cpu")
    assert compare_logits(model_of(3.0), reference) == 0
    rounded = model_of(3.0).bfloat16()
    with torch.no_grad():
        wrong = rounded(input_ids=torch.from_numpy(input_ids)).logits.flatten(0, 1)[torch.from_numpy(positions)]
    assert (wrong - logits).abs().max() > 1e-3 * logits.abs().max()
