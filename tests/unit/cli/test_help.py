"""Every command's help ends with examples that its own parser takes."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

import pytest

from data_prep.cli import make_parser
from dnabert_rm.cli.main import COMMANDS, command_parser, main

CALLS = (["dnabert-rm"], ["python", "-m", "data_prep"], ["deepspeed", "launch_scripts/pretrain.sh"])


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser, argparse.ArgumentParser]]:
    """A command's words, the parser of its help and the parser that its words are given to."""
    roots = [*((name, command_parser(name, name)) for name in COMMANDS), ("", make_parser())]
    for name, root in roots:
        yield name, root, root
        for action in root._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from ((f"{name} {word}".strip(), parser, root) for word, parser in action.choices.items())


def examples(parser: argparse.ArgumentParser) -> list[list[str]]:
    """The words of the examples at the end of a help, without the redirection of their output."""
    assert parser.epilog and parser.epilog.startswith("example:\n"), parser.prog
    lines = [line.removeprefix("  ") for line in parser.epilog.splitlines()[1:]]
    starts = {call[0] for call in CALLS} | {"mpirun"}
    commands = [shlex.split(line.partition(" > ")[0]) for line in lines if line.split(" ")[0] in starts]
    assert commands, parser.prog
    return [words[words.index("python") :] if words[0] == "mpirun" else words for words in commands]


@pytest.mark.parametrize(("name", "parser", "root"), [pytest.param(*found, id=found[0] or "-") for found in parsers()])
def test_examples_parse(name: str, parser: argparse.ArgumentParser, root: argparse.ArgumentParser) -> None:
    for words in examples(parser):
        call = next(call for call in CALLS if words[: len(call)] == call)
        rest = words[len(call) :]
        own = name.split()[0] if call == CALLS[0] else ""
        assert rest[: len(own.split())] == own.split()
        root.parse_args(rest[len(own.split()) :])
        # A kind's own help shows that kind.
        assert parser is root or name.split()[-1] in rest


@pytest.mark.parametrize("name", ["pretrain", "check", "plan", "show-batch"])
def test_usage_fits(name: str) -> None:
    usage = command_parser(name, f"dnabert-rm {name}").format_usage().strip()
    assert len(usage.splitlines()) == 1
    assert len(usage) <= 120


def test_a_launcher_may_put_the_local_rank_before_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """As `deepspeed --module dnabert_rm pretrain …` does."""
    with pytest.raises(SystemExit):
        main(["--local_rank=0", "pretrain", "--stepps", "3"])
    assert "unrecognized arguments: --stepps 3" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["build", "x.fa", "--out", "y"], ["inspect", "y"]])
def test_an_unknown_flag_leads_to_the_help_of_the_command_it_was_given_to(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args([*words, "--unknown"])
    said = capsys.readouterr().err
    assert said.endswith(f"unrecognized arguments: --unknown (see `python -m data_prep {words[0]} --help`)\n")
