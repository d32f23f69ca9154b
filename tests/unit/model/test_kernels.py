"""Kernels of a run: which attention is used, deterministic kernels, and layers that compile to few graphs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch

from dnabert_rm.config import ModelConfig, resolve
from dnabert_rm.model import kernels
from dnabert_rm.model.build import architecture_of, build_model, encoder_layers, transformers_config
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.utils.errors import ConfigError

CPU = torch.device("cpu")


def chosen(attention: str, *, deterministic: bool = False, precision: str = "fp32") -> str:
    model = ModelConfig(attention=attention)
    with kernels.attention_kernels(attention, deterministic):
        return kernels.chosen_attention_kernel(model, architecture_of(model, 69), 128, precision, CPU)


@pytest.mark.parametrize(
    ("attention", "kernel"),
    [("auto", "flash_attention"), ("sdpa", "flash_attention"), ("flash", "flash_attention"), ("math", "math")],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_attention_kernel_is_the_first_that_can_run(attention: str, kernel: str, deterministic: bool) -> None:
    assert chosen(attention, deterministic=deterministic) == kernel
    assert chosen("eager") == "eager"


def test_a_kernel_that_cannot_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the kernel cudnn cannot run here \(heads of 64, bf16, cpu\); choose auto"):
        chosen("cudnn", precision="bf16")


def test_deterministic_kernels_are_switched_off_again() -> None:
    for enabled in (True, False):
        with kernels.deterministic_kernels(enabled):
            assert torch.are_deterministic_algorithms_enabled() == enabled
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("architecture", "hidden", "attention"), [("bert", 0.1, 0.0), ("modernbert", 0.2, 0.3), ("bert", 0.1, -1.0)]
)
def test_attention_has_a_dropout_of_its_own(architecture: str, hidden: float, attention: float) -> None:
    model = ModelConfig(architecture=architecture, dropout=hidden, attention_dropout=attention)
    config, expected = architecture_of(model, 69), hidden if attention < 0 else attention
    if architecture == "bert":
        assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (hidden, expected)
    else:
        assert (config.embedding_dropout, config.mlp_dropout, config.attention_dropout) == (hidden, hidden, expected)


@pytest.mark.parametrize(("given", "stored"), [(True, "true"), (False, "false"), ("auto", "auto")])
def test_model_compile_takes_a_boolean_too(given: bool | str, stored: str) -> None:
    """As in the configurations of earlier runs."""
    sections = {"data": {"path": ["prepared"]}, "train": {"output": "run"}}
    assert resolve({**sections, "model": {"compile": given}}).model.compile == stored


def test_auto_compiles_a_modernbert_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: object())
    model, gpu = ModelConfig(), torch.device("cuda")
    assert kernels.is_compiled(model, "modernbert", 1, gpu)
    assert not kernels.is_compiled(model, "bert", 1, gpu)
    assert not kernels.is_compiled(model, "modernbert", 3, gpu)
    assert not kernels.is_compiled(model, "modernbert", 1, CPU)
    assert kernels.is_compiled(dataclasses.replace(model, compile="true"), "bert", 1, CPU)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert not kernels.is_compiled(model, "modernbert", 1, gpu)


GRAPHS = """
import torch
from torch._dynamo.utils import counters
from dnabert_rm.model.build import build_model, encoder_layers, prepare_layers, transformers_config
from dnabert_rm.model.kernels import uncompiled_layers
from dnabert_rm.model.mlm import MaskedLM

sizes = {"hidden_size": 32, "num_layers": 6, "num_heads": 2, "intermediate_size": 64, "max_positions": 64}
model = build_model(transformers_config(architecture="ARCHITECTURE", vocab_size=261, dropout=0.1, **sizes), 0)
prepare_layers(model, checkpointing=False, compiled=True)
module = MaskedLM(model, 4).train()
for num_masked in (10, 11, 13, 7, 20):
    ids, positions = torch.randint(5, 261, (2, 32)), torch.arange(num_masked)
    module(ids, positions, ids.flatten()[positions])[0].backward()
with torch.no_grad(), uncompiled_layers(module.eval()):
    module(torch.randint(5, 261, (3, 20)), torch.arange(4))
print(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
"""


@pytest.mark.parametrize(("architecture", "graphs"), [("bert", 2), ("modernbert", 3)])
def test_layers_are_compiled_once_whatever_the_number_of_masked_tokens(architecture: str, graphs: int) -> None:
    """One graph for all layers but the last, one for the last, one for a modernbert's first, which has no norm."""
    code = GRAPHS.replace("ARCHITECTURE", architecture)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(graphs), "0"]


def test_float8_is_refused_with_every_reason() -> None:
    sizes = transformers_config(architecture="bert", vocab_size=69, **(SMALL | {"intermediate_size": 72}))
    with pytest.raises(ConfigError) as raised:
        kernels.check_float8(sizes, num_tokens=130, precision="fp32", compiled=False, zero_stage=3, device=CPU)
    for reason in ("--precision bf16", "--model.compile true", "zero1 or zero2", "(not 72, 130)", "a newer GPU"):
        assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


SMALL = {
    "hidden_size": 64,
    "num_layers": 3,
    "num_heads": 2,
    "intermediate_size": 128,
    "max_positions": 64,
    "dropout": 0.0,
}


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_float8_trains_like_bf16_with_the_same_parameters(architecture: str) -> None:
    curves, names = [], []
    for float8 in (False, True):
        model = build_model(transformers_config(architecture=architecture, vocab_size=261, **SMALL), 0)
        if float8:
            kernels.convert_to_float8(encoder_layers(model), emulated=True)
        module = MaskedLM(model, 4).to(torch.bfloat16)
        names.append(list(module.state_dict()))
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        ids, positions, losses = (
            torch.randint(5, 261, (2, 32), generator=torch.Generator().manual_seed(0)),
            torch.arange(10),
            [],
        )
        for _ in range(20):
            loss = module(ids, positions, ids.flatten()[positions])[0] / 10
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        curves.append(losses)
    assert names[0] == names[1]
    with torch.no_grad(), kernels.uncompiled_layers(module):
        plain = module(ids, positions)
    stock = build_model(model.config, 0)
    stock.load_state_dict(model.state_dict())
    expected = MaskedLM(stock, 4).to(torch.bfloat16)(ids, positions)
    assert torch.equal(plain, expected) and not torch.equal(plain, module(ids, positions))
    assert curves[0][-1] < curves[0][0] - 1 and curves[0] != curves[1]
    assert curves[1] == pytest.approx(curves[0], rel=0.02)
