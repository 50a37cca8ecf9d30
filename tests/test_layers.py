"""Imports point one way: a file of nanonet imports lower ranks only, and ops and backends never meet."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "nanonet"
# the longest prefix that fits decides; equal ranks may import each other inside one folder, and upwards of 7
RANKS = {
    "nanonet": 9,
    "nanonet.reference": 0,
    "nanonet.eager": 1,
    "nanonet.backends": 2,
    "nanonet.ops": 3,
    "nanonet.losses": 4,
    "nanonet.config.train": 4,
    "nanonet.data": 5,
    "nanonet.models.cnn": 5,
    "nanonet.cohort": 6,
    "nanonet.cli.main": 8,
    "nanonet.__main__": 9,
}
TOP = 7  # train, job, teacher, report, export, ...: all that is not named above
ALONE = {
    "nanonet.config.train": set(),
    "nanonet.reference": set(),
    "nanonet.backends": {"nanonet.kernels", "nanonet._C"},
}


def rank(module: str) -> int:
    named = [name for name in RANKS if name != "nanonet" and (module + ".").startswith(name + ".")]
    return RANKS[max(named, key=len)] if named else RANKS.get(module, TOP)


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("nanonet", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = {name for name in names if name.split(".")[0] == "nanonet"}
    return {name if name in known or name.startswith("nanonet._C") else name.rpartition(".")[0] for name in names}


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    own = rank(module)
    for target in imports(MODULES[module], set(MODULES)):
        if target == "nanonet":
            assert own >= TOP, f"{module} imports nanonet itself"
            continue
        together = (
            module.rpartition(".")[0] == target.rpartition(".")[0] != "nanonet" or module == target.rpartition(".")[0]
        )
        assert rank(target) < own or together or own == rank(target) == TOP or target in ALONE.get(module, set()), (
            f"{module} (rank {own}) imports {target} (rank {rank(target)})"
        )


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(("nanonet.ops", "nanonet.backends"))])
def test_ops_and_backends_never_import_each_other(module: str) -> None:
    other = "nanonet.backends" if module.startswith("nanonet.ops") else "nanonet.ops"
    assert not any(target.startswith(other) for target in imports(MODULES[module], set(MODULES)))


def test_the_rank_of_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from nanonet.training.loop import fit\nimport nanonet.cohort.stack\n")
    assert {rank(name) for name in imports(wrong, set(MODULES))} == {7, 6} and rank("nanonet.ops.distill") == 3
