"""What mkdocs generates: a page's line `<!-- generated: NAME -->` becomes the text that `GENERATED[NAME]` returns.

cli      every command and flag, from the config dataclasses
presets  what each preset of `nanonet train` sets
ranks    the table of packages and what each may import, from tests/test_layers.py
"""

from __future__ import annotations

import ast
import dataclasses
import re
import types
import typing
from collections import defaultdict
from pathlib import Path
from typing import Any

from nanonet.cli.main import COMMANDS, Command
from nanonet.config.describe import describe, sections
from nanonet.config.parse import shown
from nanonet.config.presets import PRESETS
from nanonet.config.train import TrainConfig

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- generated: (\w+) -->")
KINDS = {int: "integer", float: "number", str: "text", bool: "switch"}


def cli() -> str:
    return "\n\n".join(_command(name, command) for name, command in COMMANDS.items())


def _command(name: str, command: Command) -> str:
    """A heading, the summary, and a table for each group of flags."""
    help_of, section_of = describe(command.config), sections(command.config)
    kinds = typing.get_type_hints(command.config)
    tables: dict[str, list[str]] = defaultdict(list)
    for field in dataclasses.fields(command.config):
        flag = field.name.upper() if field.name == command.positional else "--" + field.name.replace("_", "-")
        cells = (f"`{flag}`", _values(kinds[field.name]), f"`{shown(field.default)}`", help_of[field.name])
        tables[section_of[field.name]].append(f"| {' | '.join(cells)} |")
    parts = [f"## nanonet {name}", command.summary]
    for heading, rows in tables.items():
        parts += [f"### {name}: {heading}"] if heading else []
        parts.append("\n".join(["| flag | value | default | meaning |", "| --- | --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


def _values(kind: Any) -> str:
    """What a flag takes."""
    if isinstance(kind, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"{KINDS[typing.get_args(kind)[0]]}, one or more"
    return KINDS[kind]


def presets() -> str:
    """A row for each field that a preset sets, a column for each preset."""
    fields = list(dict.fromkeys(field for preset in PRESETS.values() for field in preset.settings))
    rows = [
        "| flag | default | " + " | ".join(f"`{name}`" for name in PRESETS) + " |",
        "| --- | --- |" + " --- |" * len(PRESETS),
    ]
    for field in fields:
        values = [preset.settings.get(field) for preset in PRESETS.values()]
        cells = ["" if value is None else f"`{value}`" for value in (getattr(TrainConfig, field), *values)]
        rows.append(f"| `--{field.replace('_', '-')}` | {' | '.join(cells)} |")
    papers = [f"- `{name}` ({preset.paper}): {preset.system}." for name, preset in PRESETS.items()]
    return "\n".join([*papers, "", *rows])


def ranks() -> str:
    """One row for each rank, the lowest first."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text())
    values = {t.id: node.value for node in tree.body if isinstance(node, ast.Assign) for t in node.targets}  # type: ignore[attr-defined]
    packages: dict[int, list[str]] = defaultdict(list)
    for package, rank in ast.literal_eval(values["RANKS"]).items():
        packages[rank].append(f"`{package or 'nanonet/__init__'}`")
    rows = [f"| {rank} | {', '.join(packages[rank])} |" for rank in sorted(packages)]
    return "\n".join(["| rank | packages and files |", "| --- | --- |", *rows])


GENERATED = {"cli": cli, "presets": presets, "ranks": ranks}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this for every page."""
    return MARK.sub(lambda match: GENERATED[match[1]](), markdown)
