"""`dnabert-rm COMMAND …`: finds the command's module and runs it; imports nothing heavy itself."""

from __future__ import annotations

import argparse
import importlib
import sys
import textwrap

from dnabert_rm import __version__
from dnabert_rm.config.command_line import OneLineParser
from dnabert_rm.utils.environment import limit_openmp_spinning
from dnabert_rm.utils.errors import EXIT_USER_ERROR, run_command

PROGRAM = "dnabert-rm"
COMMANDS = (
    "check", "plan", "show-batch", "pretrain", "export", "finetune", "gue", "predict", "embed", "score-variants",
    "analyze",
)  # fmt: skip

EXAMPLE = """\
deepspeed launch_scripts/pretrain.sh --preset small --data prepared --output runs/first --steps 20000
dnabert-rm export runs/first --output models/first
dnabert-rm finetune --model models/first --train train.csv --dev dev.csv --test test.csv --output finetuned/first
"""


def command_parser(name: str, prog: str) -> argparse.ArgumentParser:
    """The parser of one command, its example at the end of its help."""
    module = importlib.import_module(f"dnabert_rm.cli.{name.replace('-', '_')}")
    parser = OneLineParser(
        prog=prog,
        description=module.HELP,
        epilog=f"example:\n{textwrap.indent(module.EXAMPLE, '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.set_defaults(command_to_run=module.run)
    return parser


def overview() -> str:
    """The text of `dnabert-rm --help`."""
    lines = [f"usage: {PROGRAM} COMMAND [options]   (each has --help)", ""]
    for name in COMMANDS:
        module = importlib.import_module(f"dnabert_rm.cli.{name.replace('-', '_')}")
        lines.append(f"  {name:<14} {module.HELP}")
    lines += ["", "example, after `python -m data_prep build genome.fa.gz --out prepared`:"]
    lines += [f"  {line}" for line in EXAMPLE.splitlines()]
    return "\n".join([*lines, "", f"dnabert_rm {__version__}"])


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code (2 for a user's mistake, after one line on standard error)."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) > 1 and argv[0].startswith("--local_rank="):
        # `deepspeed --module dnabert_rm pretrain …` puts it before the command.
        argv = [argv[1], argv[0], *argv[2:]]
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"{PROGRAM}: error: no command {argv[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_USER_ERROR
    return run_one(argv[0], f"{PROGRAM} {argv[0]}", argv[1:])


def run_one(name: str, prog: str, argv: list[str]) -> int:
    """Run the command `name` under the program name `prog`."""
    limit_openmp_spinning()
    args = command_parser(name, prog).parse_args(argv)
    return run_command(prog, lambda: args.command_to_run(args))


if __name__ == "__main__":
    sys.exit(main())
