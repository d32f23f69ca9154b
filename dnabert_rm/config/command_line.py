"""The parser of all commands."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from dnabert_rm.utils.errors import EXIT_USER_ERROR, is_first_rank


class OneLineParser(argparse.ArgumentParser):
    """Argparse, but a mistake is one line that says where help is, and flags are never abbreviated.

    A sub-command's parser sets itself as the default of `parser`, so that an unknown flag leads to its own help.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but for whose help an unknown flag names."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            getattr(found, "parser", self).error(f"unrecognized arguments: {' '.join(unknown)}")
        return found

    def error(self, message: str) -> NoReturn:
        """Print one line, from the first of several ranks, and exit with code 2."""
        if is_first_rank():
            print(f"{self.prog}: error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR)
