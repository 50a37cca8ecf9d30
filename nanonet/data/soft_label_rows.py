"""The rows of a file of soft labels: a text and a number for each class, in one of four forms.

The columns tell the form: `probabilities` (or what --soft-labels-are says), an object of one number a class, which
`nanonet predict` writes; `label` with `probability`, which leaves the other classes open; or a column for every class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanonet.config.train import Scores
from nanonet.data.columns import Columns, text_columns
from nanonet.data.formats import read_column_names, read_rows
from nanonet.data.labels import check_unicode, one_form, read_label
from nanonet.data.lines import Limits
from nanonet.data.problems import listing, problem, shorten

TOLERANCE = 0.02  # of the sum of a row: numbers may be rounded to two digits
NAMED = ["label", "probability"]


@dataclass(frozen=True)
class SoftLabelRow:
    """place: where it stands; numbers: {class: number}, or the named class alone; None where there is no number."""

    place: str
    text: str
    numbers: dict[str, float] | None


def soft_label_rows(
    path: Path, scores: Scores, text_column: str, limits: Limits
) -> tuple[bool, Iterator[SoftLabelRow]]:
    """Return whether the rows name one class alone, and the checked rows of a file, as they are read.

    Raises:
        InputError: names the file, the line and the cure.
    """
    texts = Columns(text_columns(path, text_column, limits), None, limits)
    wanted = texts.settings
    names = [name for name in read_column_names(path, wanted, limits) if name not in wanted.values()]
    objects = next((name for name in (scores, "probabilities") if name in names), None)
    named = objects is None and set(NAMED) <= set(names)
    columns = [objects] if objects else NAMED if named else [name for name in names if name not in NAMED]
    if named and scores != "probabilities":
        raise problem(path, f"--soft-labels-are {scores}: it has labels and probabilities; leave the flag out")
    if not columns:
        cure = f"give a column for every class, a column {scores} of JSON objects, or columns label and probability"
        raise problem(path, f"no numbers beside the texts: {cure}")
    settings = wanted | {f"the column of {shorten(name, 30)}": name for name in columns}

    def rows() -> Iterator[SoftLabelRow]:
        for place, read in read_rows(path, settings, limits):
            text, values = texts.text(read, path, place), read[len(wanted) :]
            if objects:
                numbers = _object(values[0], path, place, objects)
            elif named and values[0] not in (None, ""):
                label = read_label(values[0], path, place, "label")
                numbers = {label: values[1]}
            else:
                numbers = None if named or set(values) <= {None, ""} else dict(zip(columns, values, strict=True))
            checked = check_numbers(numbers, scores, named, path, place) if numbers else None
            yield SoftLabelRow(place, text, checked)

    return named, rows()


def _object(value: object, path: Path, place: str, column: str) -> dict[str, object] | None:
    """{class: number as it is written} of an object, or of JSON that is one."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            what = f'{shorten(value, 30)} is no JSON: write an object such as {{"sports": 0.9, "world": 0.1}}'
            raise problem(path, what, place, column) from error
    if value in (None, "", {}):
        return None
    if not isinstance(value, dict):
        what = f'{shorten(value, 30)} is no object: write one such as {{"sports": 0.9, "world": 0.1}}'
        raise problem(path, what, place, column)
    return {check_unicode(name, "class", path, place, column): number for name, number in value.items()}


def check_numbers(
    numbers: dict[str, object], scores: Scores, named: bool, path: Path | str, place: str
) -> dict[str, float]:
    """The numbers of a row as such. Raises InputError unless they are what `scores` says."""
    found = {one_form(name): _number(number, path, place, name) for name, number in numbers.items()}
    if len(found) < len(numbers):
        raise problem(path, f"a class stands there twice: its classes are {listing(numbers)}", place)
    in_range: Callable[[float], bool] = {
        "probabilities": lambda x: 0 <= x <= 1,
        "logits": math.isfinite,
        "log_probabilities": lambda x: x <= 0,
    }[scores]
    for name, x in found.items():
        if not in_range(x):
            cure = "write probabilities, or say what they are by --soft-labels-are"
            raise problem(path, f"{x:g} for {shorten(name, 30)} is none of {scores.replace('_', ' ')}: {cure}", place)
    total = sum(map(math.exp, found.values()) if scores == "log_probabilities" else found.values())
    if scores != "logits" and not named and abs(total - 1) > TOLERANCE:
        what = f"the probabilities of {listing(found)} sum to {total:.4g}, not 1: give every class its own, no more"
        raise problem(path, what, place)
    return found


def _number(value: object, path: Path | str, place: str, name: str) -> float:
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    what = f"{shorten(value, 30)} is no number: write the class's probability, or drop the column if it is no class"
    raise problem(path, what, place, name)
