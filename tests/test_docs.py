"""Every file that README, docs/ or a comment names is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("*.md", "docs/*.md", "docs/**/*.md")
SOURCES = ("nanonet/**/*.py", "kernels/**/*.py", "benchmarks/*.py", "benchmarks/*.sh", "benchmarks/*.yaml")
SOURCES += ("csrc/**/*.h", "csrc/**/*.cpp", "csrc/**/*.cu", "csrc/**/*.cuh", "tests/**/*.py", "tests/*.sh")
SOURCES += ("setup.py", "CMakeLists.txt", "Makefile", "pyproject.toml")
COMMENT = re.compile(r"(?:#|//)\s.*|\"\"\"[\s\S]*?\"\"\"|/\*[\s\S]*?\*/")
# a word with one of our extensions, perhaps with folders: `csrc/rows.h`, `benchmarks/demo.yaml`
NAME = re.compile(r"(?<![\w./~{<*-])(?:[\w.-]+/)*[\w-]+\.(?:py|h|cuh|cu|cpp|sh|md|toml|yaml)\b(?![\w/(*-])")
PARTS = ("nanonet", "kernels", "benchmarks", "csrc", "tests", "docs")
# names of what a user has or a run writes, of headers of torch and CUDA, and of other projects' files
NOT_OURS = {"config.yaml", "names.yaml", "conf.py", "setup.cfg", "stable.h"}
HISTORY = ("docs/lab/", "CHANGELOG.md")  # may name what is gone


def tracked() -> set[str]:
    """The files of the repository; of the tree, where it is no repository."""
    try:
        said = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
        return {name for name in said.splitlines() if (ROOT / name).exists()}
    except (OSError, subprocess.CalledProcessError):
        return {str(path.relative_to(ROOT)) for part in PARTS for path in (ROOT / part).rglob("*")}


def files(patterns: tuple[str, ...], known: set[str]) -> list[Path]:
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(path for path in found if str(path.relative_to(ROOT)) in known)


def missing_names(text: str, folder: str, known: set[str]) -> list[str]:
    """The files that `text`, which stands in `folder`, names and that are not `known`.

    A name with folders is a path from the root, from `folder` or inside a top-level folder; one without is any file of
    that name.
    """
    ends = {"/" + name for name in known}
    missing = []
    for name in NAME.findall(text):
        # NAME stands for a name that a reader chooses
        if name in NOT_OURS or "NAME" in name or "/" in name and name.split("/")[0] not in PARTS:
            continue
        if f"{folder}/{name}" not in known and not any(path.endswith("/" + name) for path in ends):
            missing.append(name)
    return missing


def test_every_file_that_the_documents_name_is_there() -> None:
    known = tracked()
    for path in files(DOCUMENTS, known):
        if not str(path.relative_to(ROOT)).startswith(HISTORY):
            assert missing_names(path.read_text(), str(path.parent.relative_to(ROOT)), known) == [], path


def test_every_file_that_a_comment_names_is_there() -> None:
    known = tracked()
    for path in files(SOURCES, known):
        if path == Path(__file__):
            continue
        comments = "\n".join(COMMENT.findall(path.read_text()))
        assert missing_names(comments, str(path.parent.relative_to(ROOT)), known) == [], path


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("see csrc/rows.h and a.py of `benchmarks/x.py`", ["benchmarks/x.py"]),
        ("packed.h holds them", ["packed.h"]),
        ("rows.h, csrc/rows.h: nothing; https://a.org/b/c.py; ~/d.py; {e}.py; torch/csrc/f.h; nanonet/ops/NAME.py", []),
    ],
)
def test_a_name_of_nothing_is_found(text: str, missing: list[str]) -> None:
    assert missing_names(text, "docs", {"csrc/rows.h", "a.py"}) == missing
