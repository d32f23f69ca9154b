"""Who may import whom: the map of docs/architecture.md, held."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

# A room (package) may import itself and the rooms named here.
ROOMS = {
    "utils": [],
    "config": ["utils"],
    "patches": ["utils"],
    "genome": ["utils"],
    "tokenizer": ["genome", "utils"],
    "data": ["genome", "config", "utils"],
    "masking": ["genome", "config", "utils"],
    "model": ["genome", "config", "utils"],
    "planning": ["data", "masking", "model", "genome", "config", "utils"],
    "distributed": ["data", "patches", "config", "utils"],
    "checkpoint": ["distributed", "data", "model", "patches", "genome", "config", "utils"],
    "train": [
        "checkpoint",
        "distributed",
        "planning",
        "data",
        "masking",
        "model",
        "patches",
        "genome",
        "config",
        "utils",
    ],
}
TRAINING = [*ROOMS, "train"]
ROOMS |= {
    "export": TRAINING,
    "finetune": ["tokenizer", "model", "genome", "config", "utils"],
    "inference": ["finetune", "tokenizer", "model", "genome", "config", "utils"],
    "evaluate": ["inference", "finetune", "data", "masking", "model", "genome", "config", "utils"],
    "analysis": [*TRAINING, "export", "finetune", "inference"],
    "cli": [*TRAINING, "export", "finetune", "inference", "evaluate", "analysis"],
    "__main__": ["cli"],
}
ALLOWED = {f"dnabert_rm.{room}": {f"dnabert_rm.{name}" for name in (room, *names)} for room, names in ROOMS.items()}
ALLOWED["data_prep"] = {
    "data_prep",
    *(f"dnabert_rm.{name}" for name in ("data", "genome", "patches", "config", "utils")),
}
ONLY_IN = {
    "deepspeed": {
        "dnabert_rm/train/build_engine.py",
        "dnabert_rm/checkpoint/reshard.py",
        "dnabert_rm/patches/deepspeed_patches.py",
    },
    "mpi4py": {"data_prep/parallel.py", "dnabert_rm/distributed/rendezvous.py"},
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
            # `from dnabert_rm import kmer` imports the module dnabert_rm.genome.kmer.
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "dnabert_rm"
                else [node.module]
            )
            found += [(name, id(node) in top) for name in names]
    return found


def layer(module: str) -> str:
    """ "dnabert_rm.train.trainer" → "dnabert_rm.train"; "data_prep.cli" → "data_prep"."""
    parts = module.split(".")
    return parts[0] if parts[0] != "dnabert_rm" else ".".join(parts[:2])


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_its_layer_may(file: str) -> None:
    module = file.removesuffix(".py").replace("/", ".")
    allowed = ALLOWED.get(layer(module), set())
    for name, _ in imported(ROOT / file):
        if name.split(".")[0] in ("dnabert_rm", "data_prep") and name != "dnabert_rm.__version__":
            assert layer(name) in allowed, f"{file} imports {name}, which {layer(module)} may not"


def test_no_file_imports_itself_in_a_circle() -> None:
    modules = {file.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for file in FILES}
    edges: dict[str, set[str]] = {}
    for file in FILES:
        module = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        edges[module] = {name for name, _ in imported(ROOT / file) if name in modules and name != module}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for name in edges[module]:
                visit(name, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


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
        "data_prep.sharding.build_shards",
        "dnabert_rm.cli.main",
        "dnabert_rm.train.preflight",
        "dnabert_rm.train.run_verdict",
        "dnabert_rm.train.validation_record",
        "dnabert_rm.cli.analyze",
        "dnabert_rm.analysis.report",
    ]
    + [f"dnabert_rm.cli.{name}" for name in ("predict", "embed", "score_variants", "analyze")]
    + ["dnabert_rm.analysis.report"],
)
def test_what_must_start_quickly_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
