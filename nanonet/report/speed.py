"""The table of sizes and speeds, for a terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from nanonet.errors import escape_controls

Speeds = Sequence[tuple[str, dict[str, Any]]]  # name; megabytes, rows_per_s, texts_per_s
COLUMNS = {"megabytes": "megabytes", "rows_per_s": "rows/s in batches of 32", "texts_per_s": "texts/s one at a time"}


def speed_lines(found: Speeds) -> list[str]:
    """The table as lines; none where nothing was measured."""
    if not found:
        return []
    width = max(len(name) for name, _ in found) + 4
    lines = [f"{'  ' + name:<{width}}" + "  ".join(_cells(one, pad=True)) for name, one in found]
    return ["", f"{'':<{width}}{'  '.join(COLUMNS.values())}", *lines]


def speed_table(found: Speeds) -> str:
    """The table as HTML; "" where nothing was measured."""
    if not found:
        return ""
    head = "<th></th>" + "".join(f"<th>{column}</th>" for column in COLUMNS.values())
    lines = "".join(
        f"<tr><td>{escape(escape_controls(name))}</td>{''.join(f'<td>{cell}</td>' for cell in _cells(one))}</tr>"
        for name, one in found
    )
    return (
        f"<table><tr>{head}</tr>{lines}</table><p class=soft>Megabytes of weights as written; speed in float32 on the"
        " machine of the run, on up to 64 of its rows, tokenised before; a short measurement.</p>"
    )


def _cells(one: dict[str, Any], pad: bool = False) -> list[str]:
    found = []
    for key, column in COLUMNS.items():
        text = "–" if one[key] is None else f"{one[key]:,.{2 if key == 'megabytes' else 0}f}"
        found.append(text.rjust(len(column)) if pad else text)
    return found
