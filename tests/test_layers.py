"""Imports point down: a file imports packages of lower rank, or its own package without a cycle.

RANKS is the architecture: a new package or top-level file needs a line here.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"nanonet": "nanonet", "nanonet.kernels": "kernels", "nanonet.benchmarks": "benchmarks"}
RANKS = {
    "errors": 0,
    "reference": 1,
    "reference_linear": 1,
    "reference_topk": 1,
    "eager": 1,
    "eager_topk": 1,
    "schemas": 1,
    "testing": 2,
    "files": 1,
    "tensor_file": 2,
    "device": 1,
    "versions": 1,
    "processes": 1,
    "progress": 1,
    "tokenizer_faults": 1,
    "kernels": 2,
    "backends": 3,
    "ops": 4,
    "": 5,  # nanonet itself: `from nanonet import distill_loss`
    "losses": 5,
    "config": 5,
    "compat": 6,
    "installation": 6,
    "models": 6,
    "data": 6,
    "cnn_model": 7,
    "cohort": 7,
    "inference": 8,
    "teacher": 9,
    "generation": 9,
    "report": 10,
    "training": 11,
    "benchmarks": 12,
    "api": 12,
    "cli": 13,
    "__main__": 14,
}
# eager is the reference under the ops' names
WITHIN_A_RANK = {
    ("eager", "reference"),
    ("eager_topk", "eager"),
    ("eager_topk", "reference_topk"),
    ("reference", "reference_linear"),
    ("reference_topk", "reference"),
}
NEVER = {("ops", "backends"), ("backends", "ops")}


def find_modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module by its import name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = (package, *path.relative_to(root / folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def find_imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of nanonet that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = {name for name in names if name.split(".")[0] == "nanonet" and not name.startswith("nanonet._C")}
    return {name if name in modules else name.rpartition(".")[0] for name in names}


def package_of(module: str) -> str:
    """The package or top-level file of nanonet that a module belongs to; "" for nanonet itself."""
    return (module + ".").split(".")[1]


def wrong_imports(modules: dict[str, Path]) -> list[str]:
    """Every import that points up or sideways, and every cycle."""
    wrong, graph = [], {}
    for module, path in modules.items():
        own = package_of(module)
        targets = find_imports(path, modules)
        graph[module] = targets - {module}
        for target in targets:
            other = package_of(target)
            if other == own or module == "nanonet" and target.rpartition(".")[0] in ("", "nanonet"):
                continue
            if (own, other) in NEVER or RANKS[other] >= RANKS[own] and (own, other) not in WITHIN_A_RANK:
                wrong.append(f"{module} (rank {RANKS[own]}) imports {target} (rank {RANKS[other]})")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        wrong.append(f"a cycle: {' -> '.join(error.args[1])}")
    return wrong


def test_every_import_points_down() -> None:
    assert wrong_imports(find_modules()) == []


def test_every_package_has_a_rank() -> None:
    assert {package_of(module) for module in find_modules()} == RANKS.keys()


@pytest.mark.parametrize(
    ("module", "line", "what"),
    [
        ("nanonet.data.batches", "from nanonet.cohort.model import Cohort", "nanonet.data.batches (rank 6) imports"),
        ("nanonet.data.split", "from nanonet.models.load import quiet", "nanonet.data.split (rank 6)"),
        ("nanonet.ops.distill", "from nanonet.backends import cpp", "nanonet.ops.distill (rank 4) imports"),
        ("nanonet.kernels.launch", "import nanonet.losses", "nanonet.kernels.launch (rank 2) imports"),
        ("nanonet.benchmarks.measure", "from nanonet.cli.main import main", "nanonet.benchmarks.measure (rank 12)"),
        ("nanonet.data.dataset", "def f():\n    from nanonet.data.read import load_dataset", "a cycle: "),
    ],
)
def test_a_wrong_import_is_found(module: str, line: str, what: str, tmp_path: Path) -> None:
    modules = find_modules()
    mutant = tmp_path / "mutant.py"
    mutant.write_text(f"{modules[module].read_text()}\n{line}\n")
    found = wrong_imports(modules | {module: mutant})
    assert found and what in found[0], found
