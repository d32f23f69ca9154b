"""The arithmetic of model sizes against transformers' own models."""

from __future__ import annotations

import pytest

from dnabert_rm.config import ARCHITECTURES, ModelConfig, load_preset, preset_names
from dnabert_rm.train.architecture import architecture_of
from dnabert_rm.train.architecture import num_parameters as counted
from dnabert_rm.train.disk import num_parameters


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_of_every_preset_are_those_of_the_model_that_is_built(architecture: str) -> None:
    for name in preset_names():
        model = ModelConfig(**load_preset(name, architecture)["model"])
        assert num_parameters(model, 4101) == counted(architecture_of(model, 4101)), name
