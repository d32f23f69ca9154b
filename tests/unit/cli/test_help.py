"""Every command's help ends with examples that its own parser takes."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator

import pytest

from data_prep.cli import COMMANDS as PREP_COMMANDS
from data_prep.cli import main as prep_main
from dnabert_rm.cli.main import COMMANDS, load_command, main
from dnabert_rm.cli.run_flags import RunFlags
from dnabert_rm.config.command_line import Command, CommandGroup
from dnabert_rm.utils.errors import ConfigError

PREFIXES = (["dnabert-rm"], ["python", "-m", "data_prep"], ["deepspeed", "launch_scripts/pretrain.sh"])


def commands() -> Iterator[tuple[str, Command]]:
    """Every command by the words that call it."""
    for name in COMMANDS:
        command = load_command(name)
        if isinstance(command, CommandGroup):
            yield from ((f"{name} {kind}", one) for kind, one in command.kinds.items())
        else:
            yield name, command
    yield from PREP_COMMANDS.items()


def examples(command: Command) -> list[list[str]]:
    """The words of the examples at the end of a help, without the redirection of their output."""
    starts = {prefix[0] for prefix in PREFIXES} | {"mpirun"}
    lines = [shlex.split(line.partition(" > ")[0]) for line in command.example.splitlines()]
    found = [words for words in lines if words and words[0] in starts]
    assert found, command.name
    return [words[words.index("python") :] if words[0] == "mpirun" else words for words in found]


@pytest.mark.parametrize(("name", "command"), [pytest.param(*found, id=found[0]) for found in commands()])
def test_examples_parse(name: str, command: Command) -> None:
    assert command.example.splitlines()[0] in command.parser(name).format_help()
    for words in examples(command):
        prefix = next(prefix for prefix in PREFIXES if words[: len(prefix)] == prefix)
        rest = words[len(prefix) :]
        own = [] if prefix == PREFIXES[2] else name.split()
        assert rest[: len(own)] == own
        parsed = command.parse(name, rest[len(own) :])
        if isinstance(parsed[-1], RunFlags):
            assert not parsed[-1].unknown and not parsed[-1].wrong_types


@pytest.mark.parametrize("name", ["pretrain", "check", "plan", "show-batch"])
def test_usage_fits(name: str) -> None:
    usage = load_command(name).parser(f"dnabert-rm {name}").format_usage().strip()
    assert len(usage.splitlines()) == 1
    assert len(usage) <= 120


def test_a_launcher_may_put_the_local_rank_before_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """As `deepspeed --module dnabert_rm pretrain …` does."""
    before = os.environ.get("LOCAL_RANK"), signal.getsignal(signal.SIGTERM)
    assert main(["--local_rank=0", "pretrain", "--stepps", "3"]) == 2
    assert (os.environ.get("LOCAL_RANK"), signal.getsignal(signal.SIGTERM)) == before, "the process is as it was"
    assert "unrecognized arguments: --stepps 3" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["build", "x.fa", "--out", "y"], ["inspect", "y"]])
def test_an_unknown_flag_leads_to_the_help_of_its_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert prep_main([*words, "--unknown"]) == 2
    printed = capsys.readouterr().err
    assert "unrecognized arguments: --unknown" in printed
    assert printed.endswith(f"(see `python -m data_prep {words[0]} --help`)\n")


def test_missing_wrong_and_unknown_flags_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        load_command("finetune").parse(
            "finetune", ["--task", "x", "--epochs", "0", "--batch-size", "q", "--lerning-rate", "1"]
        )
    text = str(raised.value)
    assert "did you mean '--learning-rate'?" in text
    assert "the following arguments are required: --model, --train, --test, --output" in text
    assert "--batch-size q: must be of type int" in text
    assert "--task x: must be one of classes, multi-label, regression, bases" in text
    assert "--epochs 0: must be at least 1" in text


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--label-columns", "a,,b", "list each label column once"),
        ("--seeds", "0", "must be at least 1"),
        ("--weight-decay", "inf", "must be a finite number"),
    ],
)
def test_values_that_are_refused(flag: str, value: str, reason: str) -> None:
    files = ["--model", "m", "--train", "a", "--test", "b", "--output", "o"]
    with pytest.raises(ConfigError) as raised:
        load_command("finetune").parse("finetune", [*files, flag, value])
    assert str(raised.value).startswith(f"{flag} {value}: {reason}")


def test_values_that_are_taken() -> None:
    run = ["--data", "d", "--output", "o", "--train.hang_timeout_seconds", "inf", "--optim.clip", "inf", "--lr=1e-3"]
    config = load_command("check").parse("check", run)[1].config()
    assert config.train.hang_timeout_seconds == config.optim.clip == float("inf") and config.optim.lr == 1e-3
    files = ["--model", "m", "--data", "d", "--output", "o"]
    assert load_command("gue").parse("gue", [*files, "--sets", "mouse/0/, tf"])[0].sets == ("mouse/0", "tf")
    with pytest.raises(ConfigError, match="--preset : no such preset"):
        load_command("check").parse("check", [*run, "--preset", ""])[1].config()
