"""The table of confidences, for a terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from nanonet.errors import escape_controls
from nanonet.inference.reliability import COVERAGES

Reliabilities = Sequence[tuple[str, dict[str, Any]]]  # name, and what `reliability` returns
COLUMNS = ("confidence", "calibration error", *(f"top {percent}%" for percent in COVERAGES))


def confidence_lines(found: Reliabilities) -> list[str]:
    """The table as lines; none where nothing was tested."""
    if not found:
        return []
    width = max(len(name) for name, _ in found) + 4
    head = f"{'':<{width}}{'  '.join(COLUMNS)}"
    rows = [
        f"{'  ' + name:<{width}}"
        + "  ".join(f"{value:>{len(column)}}" for value, column in zip(_values(one), COLUMNS, strict=True))
        for name, one in found
    ]
    return ["", head, *rows, "  top 90%: accuracy of the most confident 90% of the test rows"]


def confidence_table(found: Reliabilities) -> str:
    """The table as HTML; "" where nothing was tested."""
    if not found:
        return ""
    head = "<th></th>" + "".join(f"<th>{column} [%]</th>" for column in COLUMNS)
    lines = "".join(
        f"<tr><td>{escape(escape_controls(name))}</td>{''.join(f'<td>{value}</td>' for value in _values(one))}</tr>"
        for name, one in found
    )
    return (
        f"<table><tr>{head}</tr>{lines}</table><p class=soft>Confidence: the largest probability of a row, on average."
        " Calibration error: how far it lies from the accuracy, in 15 bins. Top 90%: accuracy of the most confident"
        " 90% of the test rows. The teacher's probabilities are those of its head, before confidence calibration.</p>"
    )


def _values(one: dict[str, Any]) -> list[str]:
    top = one["accuracy_of_most_confident"]
    values = [one["mean_confidence"], one["calibration_error"], *(top[str(percent)] for percent in COVERAGES)]
    return [f"{100 * value:.1f}" for value in values]
