"""The oldest versions in floors.txt are those that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_floors_of_both_files_are_the_same() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "floors.txt").read_text(), re.M))
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = dict(word.split(">=") for word in stated)
    assert floors.keys() <= pinned.keys()
    # torch's floor is that of its stable ABI; older releases than the pinned one are not to be had everywhere
    assert [name for name, floor in floors.items() if not pinned[name].startswith(floor)] == ["torch"]
