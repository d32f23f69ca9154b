"""Entry point of `dnabert-rm COMMAND …`: import the command's module, then run the command.

This file imports no slow packages itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from dnabert_rm import __version__
from dnabert_rm.config.command_line import Command, CommandGroup, choose_command, overview
from dnabert_rm.utils.environment import limit_openmp_spinning
from dnabert_rm.utils.errors import EXIT_USER_ERROR, ConfigError, run_command

PROGRAM = "dnabert-rm"
DESCRIPTION = "Pretrain, export, fine-tune, predict and analyze DNA BERTs."
COMMANDS = (
    "check",
    "plan",
    "show-batch",
    "pretrain",
    "check-run",
    "export",
    "push",
    "finetune",
    "evaluate",
    "gue",
    "predict",
    "embed",
    "score-variants",
    "analyze",
)
EXAMPLE = """\
python -m data_prep build genome.fa.gz --out prepared
deepspeed launch_scripts/pretrain.sh --preset small --data prepared --output runs/first --steps 20000
dnabert-rm export runs/first --output models/first
dnabert-rm finetune --model models/first --train train.csv --dev dev.csv --test test.csv --output finetuned/first
"""


def load_command(name: str) -> Command | CommandGroup:
    """Import the module of the command `name` and return the command."""
    command: Command | CommandGroup = importlib.import_module(f"dnabert_rm.cli.{name.replace('-', '_')}").COMMAND
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A user error prints one line to standard error and returns 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) > 1 and words[0].startswith("--local_rank="):
        # `deepspeed --module dnabert_rm pretrain …` puts this flag before the command.
        words = [words[1], words[0], *words[2:]]
    if not words or words[0] in ("-h", "--help"):
        print(overview(PROGRAM, DESCRIPTION, map(load_command, COMMANDS), EXAMPLE) + f"\n\ndnabert_rm {__version__}")
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    try:
        name = choose_command(PROGRAM, COMMANDS, words)
    except ConfigError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return run_one(name, f"{PROGRAM} {name}", words[1:])


def run_one(name: str, prog: str, words: Sequence[str]) -> int:
    """Run the command `name` and return its exit code. Messages start with the program name `prog`."""
    limit_openmp_spinning()
    return run_command(prog, lambda: load_command(name).main(prog, words))


if __name__ == "__main__":
    sys.exit(main())
