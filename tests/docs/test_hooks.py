"""What the documentation generates from the code is complete."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from nanonet.cli.main import COMMANDS
from nanonet.config.describe import describe
from nanonet.config.presets import PRESETS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_a_row(hooks: ModuleType, name: str) -> None:
    config, positional = COMMANDS[name].config, COMMANDS[name].positional
    page = hooks.on_page_markdown("before\n<!-- generated: cli -->\nafter")
    section = page.split(f"## nanonet {name}\n")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    flags = [
        f.name.upper() if f.name == positional else f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(config)
    ]
    assert sorted(row[0].strip("| `") for row in rows) == sorted(flags)
    assert all(text in section for text in describe(config).values())


def test_every_package_has_a_row(hooks: ModuleType) -> None:
    from importlib import util

    spec = util.spec_from_file_location("layers", ROOT / "tests" / "test_layers.py")
    assert spec and spec.loader
    layers = util.module_from_spec(spec)
    spec.loader.exec_module(layers)
    rows = hooks.ranks().splitlines()[2:]
    assert len(rows) == len(set(layers.RANKS.values()))
    for package, rank in layers.RANKS.items():
        assert any(row.startswith(f"| {rank} |") and f"`{package or 'nanonet/__init__'}`" in row for row in rows)


def test_every_setting_of_a_preset_is_in_its_column(hooks: ModuleType) -> None:
    page = hooks.on_page_markdown("<!-- generated: presets -->")
    head, _, *rows = [
        [cell.strip("` ") for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"
    ]
    for name, preset in PRESETS.items():
        column = head.index(name)
        shown = {row[0]: row[column] for row in rows if row[column]}
        assert shown == {f"--{field.replace('_', '-')}": str(value) for field, value in preset.settings.items()}
        assert preset.paper in page


def test_an_unknown_mark_is_an_error(hooks: ModuleType) -> None:
    with pytest.raises(KeyError, match="nothing"):
        hooks.on_page_markdown("<!-- generated: nothing -->")
