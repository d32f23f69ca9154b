"""Who may import whom, as in docs/architecture.md; and no file is read in a way that could run code from it."""

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
# Modules whose files can hold code. `pickle` is imported for the name of its error only.
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLE_ERRORS = {"PickleError", "PicklingError", "UnpicklingError"}
# These files call `torch.load` in a block of `safe_torch_load` only, which sets weights_only=True in every call.
IN_SAFE_TORCH_LOAD = {
    "dnabert_rm/checkpoint/reshard.py",
    "dnabert_rm/export/consolidate.py",
    "dnabert_rm/patches/deepspeed_patches.py",
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


def unsafe_reads(source: str, in_safe_torch_load: bool = False) -> list[str]:
    """Return the lines of a Python source that could run code from a file which they read.

    `numpy.load` may omit allow_pickle, since numpy's documented default is False. `torch.load` may omit weights_only
    only `in_safe_torch_load`: an environment variable can change torch's default.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        name = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in PICKLES:
            if node.attr not in PICKLE_ERRORS:
                found.add(node.lineno)
        elif isinstance(node, ast.ImportFrom) and (node.module in PICKLES or node.module in ("torch", "numpy")):
            if {alias.name for alias in node.names} - PICKLE_ERRORS and node.module in PICKLES:
                found.add(node.lineno)
            if any(alias.name == "load" for alias in node.names):
                found.add(node.lineno)  # `from torch import load` would hide the call from this test
        elif isinstance(node, ast.Import):
            if {alias.name for alias in node.names} & (PICKLES - {"pickle"}):
                found.add(node.lineno)
        elif name in ("eval", "exec") or name.endswith((".read_pickle", ".load_module", ".unsafe_load", ".jit.load")):
            found.add(node.lineno)
        elif isinstance(node, ast.Call):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            is_torch = ast.unparse(node.func) == "torch.load"
            default = "True" if in_safe_torch_load else "missing"
            if (
                (is_torch and keywords.get("weights_only", default) != "True")
                or keywords.get("allow_pickle", "False") != "False"
                or keywords.get("trust_remote_code", "False") != "False"
            ):
                found.add(node.lineno)
    return [source.splitlines()[line - 1].strip() for line in sorted(found)]


@pytest.mark.parametrize("file", FILES)
def test_no_file_is_read_in_a_way_that_runs_code(file: str) -> None:
    assert unsafe_reads((ROOT / file).read_text(), file in IN_SAFE_TORCH_LOAD) == []


@pytest.mark.parametrize(
    ("line", "is_safe"),
    [
        ("torch.load(path, weights_only=True)", True),
        ("torch.load(path)", False),
        ("torch.load(path, weights_only=False)", False),
        ("torch.load(path, **options)", False),
        ("from torch import load", False),
        ("np.load(path)", True),
        ("np.load(path, allow_pickle=True)", False),
        ("np.load(path, allow_pickle=trusted)", False),
        ("AutoModel.from_pretrained(path, trust_remote_code=False)", True),
        ("AutoModel.from_pretrained(path, trust_remote_code=True)", False),
        ("pickle.load(stream)", False),
        ("read = pickle.Unpickler", False),
        ("from pickle import loads", False),
        ("from pickle import UnpicklingError", True),
        ("except_these = (OSError, pickle.UnpicklingError)", True),
        ("import joblib", False),
        ("pandas.read_pickle(path)", False),
        ("eval(text)", False),
        ("model.eval()", True),
    ],
)
def test_an_unsafe_read_is_found(line: str, is_safe: bool) -> None:
    assert (unsafe_reads(line) == []) == is_safe


def test_safe_torch_load_allows_no_explicit_exception() -> None:
    assert unsafe_reads("torch.load(path)", in_safe_torch_load=True) == []
    assert unsafe_reads("torch.load(path, weights_only=False)", in_safe_torch_load=True)
