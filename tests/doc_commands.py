"""Commands in the project's documents, found, cut into words and handed to the real parsers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from data_prep.cli import COMMANDS as PREP_COMMANDS
from dnabert_rm.cli.main import COMMANDS, load_command
from dnabert_rm.config.command_line import CommandGroup
from dnabert_rm.utils.errors import ConfigError

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^|\n)\n((?:    .*\n?)+)")
INLINE = re.compile(r"`([^`\n]+)`")
OPERATORS = {"|", "||", "&&", ";", "&", ">", ">>", "2>"}
ANYTHING = {"…", "FLAGS"}
"""Stand for words that the reader adds: what a command lacks, they may hold."""
RUN_COMMANDS = {"check", "plan", "pretrain", "show-batch"}
NEEDED = {"data": {"path": ["DIR"]}, "train": {"output": "RUN"}}


def blocks(text: str, *languages: str) -> list[str]:
    """Fenced blocks of these languages, in order."""
    return [found[2] for found in FENCE.finditer(text) if found[1] in languages]


def lines(block: str) -> list[str]:
    """Lines of a block of shell, continued ones joined, prompts and outputs apart."""
    joined = block.replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in joined if line.strip() and not line.lstrip().startswith("#")]


def commands(path: Path) -> Iterator[str]:
    """Every command of ours in a document: in fences, indented blocks, and between backticks."""
    text = path.read_text()
    for fence in FENCE.finditer(text):
        if fence[1] in ("bash", "text", ""):
            yield from filter(is_ours, lines(fence[2]))
    rest = FENCE.sub("\n", text)
    for block in INDENTED.finditer(rest):
        yield from filter(is_ours, lines(block[1]))
    for code in INLINE.finditer(INDENTED.sub("\n", rest)):
        if is_ours(code[1]) and len(code[1].split()) > 2:
            yield f"{code[1]} …"


def is_ours(line: str) -> bool:
    """Whether a line calls one of our commands, possibly through a launcher."""
    called = re.search(r"(?:^|\s)(dnabert-rm [a-z]|python -m data_prep \w|\S*pretrain\w*\.(?:sh|slurm) )", line)
    return called is not None and not line.startswith(("usage:", "dnabert-rm:"))


def fault(line: str) -> str:
    """What the real parser, and for a run the types of its fields, find wrong with a command; empty for nothing."""
    words = list(_until_operator(shlex.split(line, comments=True)))
    if any(word.endswith("pretrain_mpi.sh") for word in words):
        program, given = "pretrain", words[words.index("--") + 1 :] if "--" in words else []
    elif scripts := [i for i, word in enumerate(words) if re.search(r"pretrain\.(sh|slurm)$", word)]:
        program, given = "pretrain", words[scripts[0] + 1 :]
    elif "dnabert-rm" in words:
        program, *given = words[words.index("dnabert-rm") + 1 :]
    else:
        program, given = "data_prep", words[words.index("data_prep") + 1 :]
    return _parse(program, [word for word in given if word not in ANYTHING], bool(ANYTHING & set(given)))


def _until_operator(words: list[str]) -> Iterator[str]:
    for word in words:
        if word in OPERATORS:
            return
        yield word


def _parse(program: str, given: list[str], may_lack: bool) -> str:
    found = load_command(program) if program in COMMANDS else None
    table = PREP_COMMANDS if program == "data_prep" else found.kinds if isinstance(found, CommandGroup) else None
    if table is not None:
        program, *given = given or [""]
        found = table.get(program)
    if found is None:
        return f"no command {program!r}"
    if {"-h", "--help"} & set(given):
        return ""
    command = found
    try:
        parsed = command.parse(program, given)
    except ConfigError as error:
        lines = str(error).split("\n  ")
        if may_lack:
            lines = [line for line in lines if "arguments are required" not in line and "give one of" not in line]
        return "\n".join(lines)
    if program in RUN_COMMANDS:
        flags = parsed[1]
        if flags.config_file or flags.fields.get("model", {}).get("init_from"):
            return "\n".join([*flags.unknown, *flags.wrong_types])
        try:
            flags.config(NEEDED)
        except ConfigError as error:
            return str(error)
    return ""
