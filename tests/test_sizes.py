"""No file is longer than 300 lines outside the tests, and no function of nanonet/ longer than 60, docstring apart."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"nanonet": ("*.py",), "kernels": ("*.py",), "benchmarks": ("*.py", "*.sh")}
SOURCES["csrc"] = ("*.h", "*.cpp", "*.cuh", "*.cu")
FILE_LINES, FUNCTION_LINES = 300, 60


def source_files(root: Path = ROOT) -> Iterator[Path]:
    for folder, patterns in SOURCES.items():
        for pattern in patterns:
            yield from (path for path in sorted((root / folder).rglob(pattern)) if "tests" not in path.parts)


def long_files(root: Path = ROOT) -> set[str]:
    lengths = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in source_files(root)}
    return {name for name, length in lengths.items() if length > FILE_LINES}


def long_functions(root: Path = ROOT) -> set[str]:
    found = set()
    for path in sorted((root / "nanonet").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                said = node.body[0] if ast.get_docstring(node) else None
                docstring = said.end_lineno - said.lineno + 1 if said and said.end_lineno else 0
                if node.end_lineno - node.lineno - docstring >= FUNCTION_LINES:
                    found.add(f"{path.relative_to(root)}: {node.name}")
    return found


def test_no_file_is_too_long() -> None:
    assert long_files() == set()


def test_no_function_is_too_long() -> None:
    assert long_functions() == set()


@pytest.mark.parametrize(("lines", "found"), [(FUNCTION_LINES, set()), (FUNCTION_LINES + 1, {"nanonet/a.py: f"})])
def test_a_long_function_is_found(lines: int, found: set[str], tmp_path: Path) -> None:
    (tmp_path / "nanonet").mkdir()
    (tmp_path / "nanonet" / "a.py").write_text("def f():\n" + "    pass\n" * (lines - 1))
    assert long_functions(tmp_path) == found and long_files(tmp_path) == set()
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.h").write_text("//\n" * (FILE_LINES + lines - FUNCTION_LINES))
    assert long_files(tmp_path) == ({"csrc/a.h"} if found else set())
