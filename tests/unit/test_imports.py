"""Who may import whom: the map of docs/architecture.md, held."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

# Left may import right; a layer may import itself.
ALLOWED = {
    "data_prep": {f"dnabert_rm.{name}" for name in ("kmer", "fasta", "shards", "errors", "draws", "progress", "parser")}
    | {"data_prep"},
    "dnabert_rm.errors": set(),
    "dnabert_rm.quiet": set(),
    "dnabert_rm.parser": {"dnabert_rm.errors"},
    "dnabert_rm.progress": set(),
    "dnabert_rm.threads": set(),
    "dnabert_rm.out_of_memory": {"dnabert_rm.errors"},
    "dnabert_rm.kmer": {"dnabert_rm.errors"},
    "dnabert_rm.fasta": {"dnabert_rm.fasta", "dnabert_rm.errors", "dnabert_rm.kmer"},
    "dnabert_rm.draws": {"dnabert_rm.errors"},
    "dnabert_rm.shards": {"dnabert_rm.errors", "dnabert_rm.kmer"},
    "dnabert_rm.config": {"dnabert_rm.config", "dnabert_rm.errors"},
    "dnabert_rm.tokenizer": {"dnabert_rm.tokenizer", "dnabert_rm.errors", "dnabert_rm.kmer"},
    "dnabert_rm.data": {
        "dnabert_rm.data",
        "dnabert_rm.kmer",
        "dnabert_rm.shards",
        "dnabert_rm.draws",
        "dnabert_rm.errors",
    },
    "dnabert_rm.masking": {"dnabert_rm.masking", "dnabert_rm.kmer", "dnabert_rm.draws", "dnabert_rm.errors"},
    "dnabert_rm.model": {"dnabert_rm.model", "dnabert_rm.kmer", "dnabert_rm.errors"},
}
BASE = {
    f"dnabert_rm.{name}"
    for name in (
        "errors", "quiet", "parser", "progress", "threads", "out_of_memory", "kmer", "draws", "shards", "config",
        "tokenizer",
    )
}  # fmt: skip
CORE = BASE | {"dnabert_rm.data", "dnabert_rm.masking", "dnabert_rm.model"}
ALLOWED["dnabert_rm.train"] = CORE | {"dnabert_rm.train"}
ALLOWED["dnabert_rm.downstream"] = CORE | {"dnabert_rm.train", "dnabert_rm.downstream", "dnabert_rm.fasta"}
ALLOWED["dnabert_rm.analysis"] = CORE | {"dnabert_rm.train", "dnabert_rm.analysis"}
ALLOWED["dnabert_rm.cli"] = ALLOWED["dnabert_rm.downstream"] | {"dnabert_rm.analysis", "dnabert_rm.cli"}
ALLOWED["dnabert_rm.__main__"] = {"dnabert_rm.cli"}
ONLY_IN = {
    "deepspeed": {
        "dnabert_rm/train/engine.py",
        "dnabert_rm/train/extensions.py",
        "dnabert_rm/train/safe_load.py",
        "dnabert_rm/train/universal.py",
    },
    "mpi4py": {"data_prep/parallel.py", "dnabert_rm/train/meeting.py"},
}
FILES = sorted(
    path.relative_to(ROOT).as_posix() for name in ("data_prep", "dnabert_rm") for path in (ROOT / name).rglob("*.py")
)


def imported(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, and whether at its top level (not inside a function)."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            # `from dnabert_rm import kmer` imports the module dnabert_rm.kmer.
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "dnabert_rm"
                else [node.module]
            )
            found += [(name, id(node) in top) for name in names]
    return found


def layer(module: str) -> str:
    """ "dnabert_rm.train.loop" → "dnabert_rm.train"; "data_prep.cli" → "data_prep"."""
    parts = module.split(".")
    return parts[0] if parts[0] != "dnabert_rm" else ".".join(parts[:2])


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_its_layer_may(file: str) -> None:
    module = file.removesuffix(".py").replace("/", ".")
    allowed = ALLOWED.get(layer(module), set())
    for name, _ in imported(ROOT / file):
        if name.split(".")[0] in ("dnabert_rm", "data_prep") and name != "dnabert_rm.__version__":
            assert layer(name) in allowed, f"{file} imports {name}, which {layer(module)} may not"


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    users = {file for file in FILES for name, _ in imported(ROOT / file) if name.split(".")[0] == library}
    assert users <= ONLY_IN[library]


def test_mpi_is_imported_lazily() -> None:
    assert not [f for f in FILES for name, at_top in imported(ROOT / f) if name.startswith("mpi4py") and at_top]


@pytest.mark.parametrize(
    "module",
    [
        "data_prep.cli",
        "data_prep.build",
        "dnabert_rm.cli.main",
        "dnabert_rm.train.preflight",
        "dnabert_rm.cli.analyze",
        "dnabert_rm.analysis.report",
    ]
    + [f"dnabert_rm.cli.{name}" for name in ("predict", "embed", "score_variants", "analyze")]
    + ["dnabert_rm.analysis.report"],
)
def test_what_must_start_quickly_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
