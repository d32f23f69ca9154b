"""Parameters and operations by formula, against transformers' models and torch's counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM

from dnabert_rm.config import ARCHITECTURES, load_preset, preset_names
from dnabert_rm.model import flops
from dnabert_rm.model.build import build_model, prepare_layers, transformers_config
from dnabert_rm.model.flops import ModelShape
from dnabert_rm.model.mlm import MaskedLM

WINDOWS, WINDOW, MASKED = 2, 48, 7


def sizes_of(preset: str, architecture: str, **changes: int) -> dict[str, int]:
    sizes = {**load_preset(preset, architecture)["model"], "max_positions": 512, "vocab_size": 4101, **changes}
    for name in ("initial_weights", "loss", "rope_period"):  # not a size
        sizes.pop(name, None)
    del sizes["dropout"]
    return sizes | {"architecture": architecture}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("preset", preset_names())
def test_parameters_are_those_of_the_model_by_part(preset: str, architecture: str) -> None:
    sizes = sizes_of(preset, architecture)
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(transformers_config(**sizes, dropout=0.0))
    expected = dict.fromkeys(("embeddings", "layers", "head"), 0)
    tensors = []
    for name, parameter in model.named_parameters():
        inside = "layer" in name.split(".") or "layers" in name.split(".") or "final_norm" in name
        part = "embeddings" if "embeddings" in name else "layers" if inside else "head"
        expected[part] += parameter.numel()
        tensors.append(parameter.numel())
    assert flops.parameter_counts(ModelShape(**sizes)) == expected
    assert flops.num_parameters(ModelShape(**sizes)) == model.num_parameters()
    # ZeRO-3 decides by the size of each tensor whether it stays whole, so the sizes matter, not only their sum.
    parts = flops.parameter_tensors(ModelShape(**sizes)).values()
    assert sorted(numel for part in parts for count, numel in part for _ in range(count)) == sorted(tensors)


def flops_of_rotary_table(counter: FlopCounterMode) -> int:
    """Return the operations for the table of angles: some releases of transformers use a matrix product for it."""
    counts = counter.get_flop_counts()
    return sum(sum(ops.values()) for module, ops in counts.items() if module.endswith("rotary_emb"))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_operations_are_those_that_torch_counts(architecture: str, checkpointing: bool) -> None:
    """torch counts every matrix product that runs; eager attention runs two plain products."""
    sizes = sizes_of("tiny", architecture)
    model = build_model(transformers_config(**sizes, dropout=0.0), 0, "eager")
    prepare_layers(model, checkpointing=checkpointing, compiled=False)
    module = MaskedLM(model, 6).train()
    ids, positions = torch.randint(5, 4101, (WINDOWS, WINDOW)), torch.arange(1, MASKED + 1)
    with FlopCounterMode(display=False) as forward:
        loss = module(ids, positions, ids.flatten()[positions])[0]
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    shape, tokens = ModelShape(**sizes), WINDOWS * WINDOW
    share = MASKED / tokens
    counted = forward.get_total_flops() - flops_of_rotary_table(forward)
    assert counted == pytest.approx(tokens * flops.forward_flops_per_token(shape, WINDOW, share))
    total = counted + backward.get_total_flops()
    planned = flops.training_flops_per_step(shape, WINDOWS, WINDOW, MASKED, checkpointing)
    if architecture == "modernbert" and checkpointing:
        # Recomputation stops at the last tensor that is needed, before the last product of a modernbert layer.
        planned -= tokens * 2 * (shape.num_layers - 1) * shape.hidden_size * shape.intermediate_size
    assert total == pytest.approx(planned)


def test_a_head_on_all_positions_has_transformers_operations() -> None:
    sizes = sizes_of("tiny", "bert")
    model = build_model(transformers_config(**sizes, dropout=0.0), 0, "eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(5, 4101, (WINDOWS, WINDOW)))
    expected = WINDOWS * WINDOW * flops.forward_flops_per_token(ModelShape(**sizes), WINDOW)
    assert counter.get_total_flops() == pytest.approx(expected)


def test_a_large_model_needs_six_operations_per_parameter_and_token() -> None:
    """Kaplan et al.: 6 N per token for the N parameters of the layers, if attention is small."""
    shape = ModelShape(**sizes_of("10b", "modernbert"))
    per_token = flops.training_flops_per_token(shape, window=512) - 3 * flops.head_flops_per_token(shape)
    assert per_token == pytest.approx(6 * flops.parameter_counts(shape)["layers"], rel=0.03)
    assert per_token > 6 * flops.parameter_counts(shape)["layers"]


@pytest.mark.parametrize("window", [1, 3, 64, 65, 129, 1000])
def test_sliding_layers_count_their_band_only(window: int) -> None:
    sizes = sizes_of("mini", "modernbert", max_positions=2048, num_layers=7)
    config = transformers_config(**sizes, dropout=0.0)
    attended = 0
    for kind in config.layer_types:
        reach = config.sliding_window if kind == "sliding_attention" else window
        attended += sum(abs(row - column) <= reach for row in range(window) for column in range(window))
    assert flops.attended_tokens(ModelShape(**sizes), window) == pytest.approx(attended / window)
    # The built model changes at the same length.
    full = sizes | {"max_positions": flops.MAX_GLOBAL_POSITIONS}
    assert set(transformers_config(**full, dropout=0.0).layer_types) == {"full_attention"}
    assert flops.attended_tokens(ModelShape(**full), window) == 7 * window
    longer = sizes | {"max_positions": flops.MAX_GLOBAL_POSITIONS + 1}
    assert "sliding_attention" in transformers_config(**longer, dropout=0.0).layer_types


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("Tesla V100-SXM2-32GB", 125),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA A10", 125),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("h100", 989.4),
    ],
)
def test_peaks_are_found_by_torchs_device_names(name: str, tflops: float) -> None:
    assert flops.peak_flops(name) == tflops * 1e12


def test_an_unknown_device_has_no_peak() -> None:
    assert flops.peak_flops("NVIDIA GeForce GT 710") is None
    assert all(flops.peak_flops(name) for name in flops.known_gpus())
