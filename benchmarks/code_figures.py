"""Code metrics by package: sizes of files and functions, documented public names, and outliers.

    python benchmarks/code_figures.py            # the tables of dev/code.md
    python benchmarks/code_figures.py --tests    # also tests, benchmarks and the scripts of docs
    python benchmarks/code_figures.py --coverage coverage.json    # the last step of `make coverage`

All lines of a file count. A function's lines go from its `def` to its last line, docstring included; a nested function
also counts separately. A class, function or method is public if neither its name nor its class's or file's begins with
an underscore. A method without a docstring counts as not documented, even if it overrides a documented one.
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
LONG_FILE = 250
LONG_FUNCTION = 50
USUAL_FUNCTION = 25
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Name:
    """A function, method or class."""

    name: str
    is_function: bool
    lines: int
    is_public: bool
    is_documented: bool


@dataclass(frozen=True)
class File:
    """A source file, with its path relative to the project."""

    path: str
    lines: int
    names: tuple[Name, ...]

    @property
    def functions(self) -> list[Name]:
        """The functions and methods of the file."""
        return [name for name in self.names if name.is_function]


def read_file(path: Path) -> File:
    """Measure one file."""
    text = path.read_text(encoding="utf-8")
    names = tuple(_names(ast.parse(text), "", not path.stem.startswith("_") or path.stem.startswith("__")))
    return File(path.relative_to(ROOT).as_posix(), len(text.splitlines()), names)


def _names(node: ast.AST, prefix: str, is_public: bool) -> Iterator[Name]:
    """Yield all names below a node. Names inside a function are not public."""
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
    """Return the files of each package, in the order of the table."""
    folders = [
        "data_prep",
        *sorted(path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "dnabert_rm").glob("*/__init__.py")),
    ]
    folders += ["benchmarks", "docs", "tests"] if with_tests else []
    paths_of = {"dnabert_rm (its own files)": sorted((ROOT / "dnabert_rm").glob("*.py"))}
    paths_of |= {folder: sorted((ROOT / folder).rglob("*.py")) for folder in folders}
    return {name: [read_file(path) for path in paths] for name, paths in paths_of.items()}


def row(name: str, files: list[File], coverage: dict[str, Any]) -> list[str]:
    """Return a package's row: number, median and longest of files and functions, share of documented public names."""
    functions = [function for file in files for function in file.functions]
    public = [entry for file in files for entry in file.names if entry.is_public]
    longest_file = max(files, key=lambda file: file.lines)
    longest = max(functions, key=lambda function: function.lines, default=None)
    return [
        name,
        str(len(files)),
        f"{statistics.median(file.lines for file in files):g}",
        f"{longest_file.lines} (`{Path(longest_file.path).name}`)",
        str(len(functions)),
        f"{statistics.median(function.lines for function in functions):g}" if functions else "–",
        _share(sum(function.lines <= USUAL_FUNCTION for function in functions), len(functions)),
        f"{longest.lines} (`{longest.name}`)" if longest else "–",
        str(len(public)),
        _share(sum(entry.is_documented for entry in public), len(public)),
        *([_covered([coverage[file.path] for file in files if file.path in coverage])] if coverage else []),
    ]


def _covered(summaries: list[dict[str, int]]) -> str:
    """Return the share of statements and branches that ran, from file summaries of `coverage json`."""
    total = sum(summary["num_statements"] + summary["num_branches"] for summary in summaries)
    return _share(sum(summary["covered_lines"] + summary["covered_branches"] for summary in summaries), total)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def report(files_of: dict[str, list[File]], coverage: dict[str, Any]) -> str:
    """Return the table, and lists of long files, long functions and undocumented names."""
    files = [file for group in files_of.values() for file in group]
    heads = [
        "package",
        "files",
        "median lines",
        "longest file",
        "functions",
        "median lines",
        f"up to {USUAL_FUNCTION} lines",
        "longest function",
        "public names",
        "documented",
    ]
    heads += ["covered"] if coverage else []
    rows = [
        heads,
        ["---"] * len(heads),
        *(row(name, group, coverage) for name, group in files_of.items()),
        row("all", files, coverage),
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    for title, items in outliers(files).items():
        lines += ["", f"{title}: {len(items) or 'none'}", *(f"- {item}" for item in items)]
    return "\n".join(lines)


def outliers(files: list[File]) -> dict[str, list[str]]:
    """Return long files, long functions and undocumented public names by title, longest first."""
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
        # The names of tests describe them, so they need no docstrings.
        "Public names without a docstring, tests left out": [
            f"`{file.path}` `{name.name}`"
            for file in files
            for name in file.names
            if name.is_public and not name.is_documented and not file.path.startswith("tests/")
        ],
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Sizes of files and functions and documented names, by package.")
    parser.add_argument("--tests", action="store_true", help="include benchmarks, docs and tests")
    parser.add_argument("--coverage", type=Path, metavar="FILE.json", help="report of `coverage json`; adds a column")
    args = parser.parse_args()
    measured = json.loads(args.coverage.read_text(encoding="utf-8"))["files"] if args.coverage else {}
    print(report(packages(args.tests), {path: content["summary"] for path, content in measured.items()}))


if __name__ == "__main__":
    main()
