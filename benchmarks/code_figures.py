"""Figures of the code, by package: sizes of files and functions, documented public names, and what stands out.

    python benchmarks/code_figures.py            # the tables of docs/code.md
    python benchmarks/code_figures.py --tests    # the tests', benchmarks' and docs' scripts too
    python benchmarks/code_figures.py --coverage coverage.json    # what `make coverage` ends with

A file's lines are all of its lines. A function's go from its `def` to its last line, docstring included; functions
inside functions count for themselves too. Public are classes, functions and methods without an underscore at the
beginning of their name, their class's or file's. What only overrides a documented method counts as not documented.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LONG_FILE, LONG_FUNCTION, USUAL_FUNCTION = 250, 50, 25
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Name:
    """A function, method or class: where it is, its lines, whether it is public and documented."""

    name: str
    is_function: bool
    lines: int
    is_public: bool
    is_documented: bool


@dataclass(frozen=True)
class File:
    """A source file: its path below the project, lines and names."""

    path: str
    lines: int
    names: tuple[Name, ...]

    @property
    def functions(self) -> list[Name]:
        """Its functions and methods."""
        return [name for name in self.names if name.is_function]


def read_file(path: Path) -> File:
    """The figures of one file."""
    text = path.read_text()
    names = tuple(_names(ast.parse(text), "", not path.stem.startswith("_") or path.stem.startswith("__")))
    return File(path.relative_to(ROOT).as_posix(), len(text.splitlines()), names)


def _names(node: ast.AST, prefix: str, is_public: bool) -> Iterator[Name]:
    """All names below a node; what lies inside a function is nobody's interface."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
            yield from _names(child, prefix, is_public)
            continue
        public = is_public and not child.name.startswith("_")
        lines = (child.end_lineno or child.lineno) - child.lineno + 1
        is_function, documented = isinstance(child, _FUNCTIONS), ast.get_docstring(child) is not None
        yield Name(prefix + child.name, is_function, lines, public, documented)
        yield from _names(child, f"{prefix}{child.name}.", public and not is_function)


def packages(with_tests: bool) -> dict[str, list[File]]:
    """Files by package, in the order of the table."""
    folders = [
        "data_prep",
        *sorted(path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "dnabert_rm").glob("*/__init__.py")),
    ]
    folders += ["benchmarks", "docs", "tests"] if with_tests else []
    found = {"dnabert_rm (its own files)": sorted((ROOT / "dnabert_rm").glob("*.py"))}
    found |= {folder: sorted((ROOT / folder).rglob("*.py")) for folder in folders}
    return {name: [read_file(path) for path in paths] for name, paths in found.items()}


def row(name: str, files: list[File], coverage: dict[str, Any]) -> list[str]:
    """A package as a row: files, their median and longest, the same of functions, share of documented public names."""
    functions = [function for file in files for function in file.functions]
    public = [entry for file in files for entry in file.names if entry.is_public]
    longest_file = max(files, key=lambda file: file.lines)
    longest = max(functions, key=lambda function: function.lines)
    return [
        name,
        str(len(files)),
        f"{statistics.median(file.lines for file in files):g}",
        f"{longest_file.lines} (`{Path(longest_file.path).name}`)",
        str(len(functions)),
        f"{statistics.median(function.lines for function in functions):g}",
        _share(sum(function.lines <= USUAL_FUNCTION for function in functions), len(functions)),
        f"{longest.lines} (`{longest.name}`)",
        str(len(public)),
        _share(sum(entry.is_documented for entry in public), len(public)),
        *([_covered([coverage[file.path] for file in files if file.path in coverage])] if coverage else []),
    ]


def _covered(summaries: list[dict[str, int]]) -> str:
    """The share of statements and branches that ran, of files' summaries in a report of `coverage json`."""
    total = sum(summary["num_statements"] + summary["num_branches"] for summary in summaries)
    return _share(sum(summary["covered_lines"] + summary["covered_branches"] for summary in summaries), total)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def report(found: dict[str, list[File]], coverage: dict[str, Any]) -> str:
    """The table, and what is longer than it should be or not documented."""
    files = [file for group in found.values() for file in group]
    heads = ["package", "files", "median lines", "longest file", "functions", "median lines",
             f"up to {USUAL_FUNCTION} lines", "longest function", "public names", "documented"]  # fmt: skip
    heads += ["covered"] if coverage else []
    rows = [
        heads,
        ["---"] * len(heads),
        *(row(name, group, coverage) for name, group in found.items()),
        row("all", files, coverage),
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    for title, items in outstanding(files).items():
        lines += ["", f"{title}: {len(items) or 'none'}", *(f"- {item}" for item in items)]
    return "\n".join(lines)


def outstanding(files: list[File]) -> dict[str, list[str]]:
    """What stands out, longest first."""
    functions = [(function.lines, file.path, function.name) for file in files for function in file.functions]
    return {
        f"Files over {LONG_FILE} lines": [
            f"{file.lines} `{file.path}`"
            for file in sorted(files, key=lambda file: -file.lines)
            if file.lines > LONG_FILE
        ],
        f"Functions over {LONG_FUNCTION} lines": [
            f"{lines} `{path}` `{name}`"
            for lines, path, name in sorted(functions, reverse=True)
            if lines > LONG_FUNCTION
        ],
        # A test's name says what it shows; the helpers' own files are documented like the package.
        "Public names without a docstring, tests left out": [
            f"`{file.path}` `{name.name}`"
            for file in files
            for name in file.names
            if name.is_public and not name.is_documented and not file.path.startswith("tests/")
        ],
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="Sizes of files and functions and documented names, by package.")
    parser.add_argument("--tests", action="store_true", help="benchmarks, docs and tests too")
    parser.add_argument("--coverage", type=Path, metavar="FILE.json", help="a report of `coverage json`, for a column")
    args = parser.parse_args()
    measured = json.loads(args.coverage.read_text())["files"] if args.coverage else {}
    print(report(packages(args.tests), {path: content["summary"] for path, content in measured.items()}))


if __name__ == "__main__":
    main()
