"""Commands whose flags are defined by settings classes. All errors are reported together, one per line."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, NamedTuple, NoReturn

from dnabert_rm.config.merge import did_you_mean
from dnabert_rm.config.schema import Setting, find_problems, settings_of, value_of_text
from dnabert_rm.utils.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """argparse parser without abbreviated flags. Its errors are `ConfigError`s that point to the command's help."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise a `ConfigError` instead of printing the usage."""
        raise ConfigError(self.with_help(message))

    def with_help(self, message: str) -> str:
        """Return the message followed by a pointer to this command's `--help`."""
        return f"{message} (see `{self.prog} --help`)"

    def parse_words(self, words: Sequence[str]) -> ParsedWords:
        """Parse the words of a command line. Collect errors for unknown and missing flags instead of raising them."""
        if {"-h", "--help"} & set(words):
            self.print_help()
            self.exit()
        required = [action for action in self._actions if action.required and action.option_strings]
        for action in required:  # otherwise argparse would not report unknown flags too
            action.required = False
        flags, unknown = self.parse_known_args(words)
        missing = [action.option_strings[0] for action in required if getattr(flags, action.dest) is None]
        return ParsedWords(flags, self._unknown_problem(unknown), self._missing_problem(missing))

    def _unknown_problem(self, words: Sequence[str]) -> list[str]:
        if not words:
            return []
        near = did_you_mean(words[0], self._option_string_actions) if words[0].startswith("-") else ""
        return [self.with_help(f"unrecognized arguments: {' '.join(words)}{near}")]

    def _missing_problem(self, names: Sequence[str]) -> list[str]:
        return [self.with_help(f"the following arguments are required: {', '.join(names)}")] if names else []


class ParsedWords(NamedTuple):
    """Flags of a command line as text, and error messages for unknown and missing flags."""

    flags: argparse.Namespace
    unknown: list[str]
    missing: list[str]


@dataclass(frozen=True)
class Command:
    """One command of a program. `run` takes the settings made from the flags, and returns an exit code or None."""

    name: str
    help: str
    """One line for the overview."""
    example: str
    """Lines at the end of `--help`."""
    settings: type
    """The settings class. Its optional `GROUPS` maps the first field of each flag group to the group's title."""
    run: Callable[..., int | None]
    description: str = ""
    usage: str | None = None

    def parser(self, prog: str) -> CommandParser:
        """Return the parser of this command. Its messages show `prog` as the program name."""
        epilog = f"example:\n{textwrap.indent(self.example.rstrip(), '  ')}"
        parser = CommandParser(prog, description=self.description or self.help, epilog=epilog, usage=self.usage)
        self.add_flags(parser)
        return parser

    def add_flags(self, parser: CommandParser) -> None:
        """Add the flags of this command to `parser`."""
        groups: Mapping[str, str] = getattr(self.settings, "GROUPS", {})
        target: Any = parser
        for item in settings_of(self.settings).values():
            if item.name in groups:
                target = parser.add_argument_group(groups[item.name])
            add_flag(target, item)

    def parse(self, prog: str, words: Sequence[str]) -> tuple[Any, ...]:
        """Parse the words of a command line and return the arguments of `run`. Raise `ConfigError` with all errors."""
        parsed = self.parser(prog).parse_words(words)
        return (make_settings(self.settings, parsed.flags, [*parsed.unknown, *parsed.missing]),)

    def main(self, prog: str, words: Sequence[str]) -> int | None:
        """Parse the words of a command line, run the command, and return its exit code or None."""
        return self.run(*self.parse(prog, words))


@dataclass(frozen=True, kw_only=True)
class CommandGroup:
    """Command whose first argument is the name of a subcommand."""

    name: str
    help: str
    """One line for the overview."""
    example: str
    """Lines at the end of `--help`."""
    kinds: Mapping[str, Command]
    """Subcommands, keyed by name."""
    title: str
    """Description at the top of `--help`."""

    def main(self, prog: str, words: Sequence[str]) -> int | None:
        """Run the subcommand that the first word names. For `--help`, print an overview of the subcommands."""
        if words and words[0] in ("-h", "--help"):
            print(overview(prog, self.title, self.kinds.values(), self.example))
            return 0
        name = choose_command(prog, self.kinds, words)
        return self.kinds[name].main(f"{prog} {name}", words[1:])


def add_flag(target: Any, item: Setting, *, names: Sequence[str] = (), show_empty: bool = False) -> None:
    """Add the flag of one field to a parser or argument group.

    The parser keeps strings. `values_of` converts them later, so that all errors are reported together.

    Args:
        names: Flag names to use instead of the field's name. With `names`, the flag of a `bool` field can be followed
            by true or false.
        show_empty: Show the default in the help even if it is empty or a `bool`.
    """
    rules = item.metadata
    if rules.get("internal"):
        return
    options: dict[str, Any] = {"help": argparse.SUPPRESS if rules.get("hidden") else _help(item, show_empty)}
    if names and "true" in item.choices:
        options |= {"nargs": "?", "const": "true"}
    if item.type is bool:
        options |= {"nargs": "?", "const": "true"} if names else {"action": "store_const", "const": not item.default}
    if item.type is not bool or names:
        options["metavar"] = rules.get("metavar") or _metavar(item)
        # A command's own flags that split at a separator take one word, since an argument may follow.
        if item.is_list and not rules.get("parse") and (names or not rules.get("separator")):
            options["nargs"] = "+"
    if rules.get("positional"):
        if item.default is not MISSING:
            options["nargs"] = "*" if item.is_list else "?"
        target.add_argument(item.name, **options)
    else:
        target.add_argument(*(names or (item.flag,)), dest=item.name, required=item.default is MISSING, **options)


def _metavar(item: Setting) -> str:
    return f"{{{','.join(item.choices)}}}" if item.choices else str(item.item_type.__name__).upper()


def _help(item: Setting, show_empty: bool) -> str:
    shown = item.default is not MISSING and item.default is not None
    if not show_empty:
        shown = shown and item.type is not bool and item.default not in ((), "")
    return f"{item.text} (default: {item.shown_default})".replace("%", "%%") if shown else item.text.replace("%", "%%")


def values_of(found: argparse.Namespace, items: Iterable[Setting]) -> tuple[dict[str, Any], list[str]]:
    """Return flag values keyed by field name, and an error message for each value of the wrong type."""
    values, problems = {}, []
    for item in items:
        text = getattr(found, item.name, None)
        if text is None or (text == [] and item.metadata.get("positional")):
            continue
        try:
            values[item.name] = text if isinstance(text, bool) else value_of_text(text, item)
        except ValueError as error:
            shown = " ".join(text) if isinstance(text, list) else text
            reason = str(error) if item.metadata.get("parse") else f"must be of type {item.type_name}"
            problems.append(f"{item.flag} {shown}: {reason}")
    return values, problems


def make_settings(cls: type, found: argparse.Namespace, problems: Sequence[str] = ()) -> Any:
    """Make settings from parsed flags.

    Raises one `ConfigError` with all errors: first the messages in `problems`, then the errors in flag values.
    """
    items = settings_of(cls)
    values, wrong_types = values_of(found, items.values())
    outside = [line for name, value in values.items() for line in find_problems(items[name], value, items[name].flag)]
    if problems := [*problems, *wrong_types, *outside]:
        raise ConfigError("\n  ".join(problems))
    return cls(**values)


def overview(prog: str, description: str, commands: Iterable[Command | CommandGroup], example: str) -> str:
    """Return the `--help` text of a program that has several commands."""
    lines = [f"usage: {prog} COMMAND [options]   (each command has --help)", "", description, ""]
    commands = list(commands)
    width = max(14, *(len(command.name) for command in commands))
    lines += [f"  {command.name:<{width}} {command.help}" for command in commands]
    return "\n".join([*lines, "", "example:", textwrap.indent(example.rstrip(), "  ")])


def choose_command(prog: str, commands: Collection[str], words: Sequence[str]) -> str:
    """Return the first word, which names the command. Raise `ConfigError` if it is missing or unknown."""
    if not words:
        raise ConfigError(f"the following arguments are required: COMMAND (see `{prog} --help`)")
    if words[0] not in commands:
        raise ConfigError(f"unknown command {words[0]!r}; choose one of {', '.join(commands)}")
    return words[0]
