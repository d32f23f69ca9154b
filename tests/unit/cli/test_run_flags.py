"""Flags of a run configuration."""

from __future__ import annotations

import pytest

from dnabert_rm.cli.check import COMMAND
from dnabert_rm.config import RunConfig


def config_of(*words: str) -> RunConfig:
    return COMMAND.parse("check", ["--data", "d", "--output", "r", *words])[1].config()


@pytest.mark.parametrize("words", [["1,3"], ["1", "3"], ["1,", "3"]])
def test_lists_are_separated_by_spaces_or_commas(words: list[str]) -> None:
    config = config_of("--validation.hidden_bases", *words, "--preset", "tiny")
    assert config.validation.hidden_bases == (1, 3)
    assert config_of("--phase-ends", *words).masking.phase_ends == (1, 3)


@pytest.mark.parametrize("words", [["tensorboard,mlflow"], ["tensorboard", "mlflow"]])
def test_names_too(words: list[str]) -> None:
    assert config_of("--train.trackers", *words, "--steps", "3").train.trackers == ("tensorboard", "mlflow")
