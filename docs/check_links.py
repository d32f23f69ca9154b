"""Search for broken links and paths in the project's Markdown files.

The script prints one line per broken link or path, and exits with 1 if there are any. It needs no network access. It
reads README.md, CHANGELOG.md, dev/*.md, docs/*.md and ds_configs/README.md, and checks:

- relative links and images, and their #anchors. GitHub derives the anchors from headings;
- paths that begin with a folder of the project, such as `tests/unit/data/test_sampler.py`. They may be patterns with *;
- every path in backticks in the tables of docs/architecture.md. It may be relative to dnabert_rm/, or to a path
  before it in the same row.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "dev/*.md", "docs/*.md", "ds_configs/README.md")
MAP = "docs/architecture.md"
FOLDERS = ("benchmarks", "data_prep", "dev", "dnabert_rm", "docs", "ds_configs", "launch_scripts", "tests")
_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w")
_IN_BACKTICKS = re.compile(r"[\w./*-]+(?:\.(?:py|md|toml|sh)|/)")
_PARSER = MarkdownIt("commonmark").enable("table")


def faults(root: Path) -> Iterator[str]:
    """Yield a message for each broken link or path in the Markdown files below `root`."""
    for page in sorted(path for pattern in PAGES for path in root.glob(pattern)):
        name, tokens = page.relative_to(root).as_posix(), _PARSER.parse(page.read_text(encoding="utf-8"))
        for line, target in links(tokens):
            if problem := link_problem(root, page, target):
                yield f"{name}:{line}: {target}: {problem}"
        for line, text in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            for path in _PATH.findall(text):
                if not any(root.glob(path)):
                    yield f"{name}:{line}: {path}: no such file"
        if name == MAP:
            for line, path in paths_in_tables(tokens, root):
                yield f"{name}:{line}: {path}: no such file below dnabert_rm/ or next to the path before it"


def links(tokens: list[Token]) -> Iterator[tuple[int, str]]:
    """Yield (line, target) for each link and image, except URLs. `line` is the first line of the paragraph."""
    for block in tokens:
        for token in block.children or []:
            target = str(token.attrGet("href") or token.attrGet("src") or "")
            if target and not re.match(r"[a-zA-Z][\w+.-]*:", target):
                yield (block.map or [0])[0] + 1, unquote(target)


def link_problem(root: Path, page: Path, target: str) -> str:
    """Return the problem with a link on a page, or an empty string if the link is valid."""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.is_relative_to(root):
        return "points outside the project"
    if not file.exists():
        return "no such file"
    if anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
        return "no such heading"
    return ""


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub derives them.

    An anchor is in lower case, without punctuation, and has hyphens for spaces. Repeated headings get -1, -2 …
    """
    tokens, found = _PARSER.parse(text), set()
    for before, token in itertools.pairwise(tokens):
        if before.type == "heading_open":
            shown = "".join(part.content for part in token.children or [])
            slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
            found.add(next(name for name in _numbered(slug) if name not in found))
    return found


def _numbered(slug: str) -> Iterator[str]:
    yield slug
    yield from (f"{slug}-{number}" for number in range(1, 1000))


def paths_in_tables(tokens: list[Token], root: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, path) for each path in backticks in a page's tables if no such file or folder exists."""
    line, bases = 0, [root, root / "dnabert_rm"]
    for block in tokens:
        if block.type == "tr_open":
            line, bases = (block.map or [0])[0] + 1, bases[:2]
        for token in block.children or [] if line else []:
            if token.type != "code_inline" or not _IN_BACKTICKS.fullmatch(token.content):
                continue
            matches = [path for base in bases for path in base.glob(token.content)]
            if not matches:
                yield line, token.content
            bases += [match if match.is_dir() else match.parent for match in matches]
        if block.type == "tr_close":
            line = 0


def main() -> int:
    """Print the broken links and paths. Return the exit code, which is 1 if there are any."""
    lines = list(faults(ROOT))
    print("\n".join(lines), end="\n" if lines else "", file=sys.stderr)
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
