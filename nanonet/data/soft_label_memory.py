"""Soft labels that are in memory, as those of a file. n texts, C classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanonet.config.settings import SoftLabelSettings
from nanonet.data.classes import read_class_map, rename_classes
from nanonet.data.memory import as_list
from nanonet.data.problems import listing
from nanonet.data.soft_label_files import FLAG, SoftLabelFiles, collect, combine
from nanonet.data.soft_label_rows import SoftLabelRow, check_numbers
from nanonet.errors import InputError

NAME = "soft_labels"  # the argument


@dataclass(frozen=True)
class SoftLabelTable:
    """The n rows of an argument: {class: number}, a list of C numbers, or None where a text has no soft label.

    keys: the classes as the user has them; of an array, which does not name them, 0 to C-1.
    """

    rows: list[Any]
    keys: list[Any]
    named: bool
    class_map: str = ""

    @property
    def classes(self) -> list[str]:
        """The names as the data should have them."""
        return rename_classes([str(key) for key in self.keys], read_class_map(self.class_map), NAME)


def soft_label_table(values: Any, class_map: str = "") -> SoftLabelTable:
    """The rows of an (n,C) array or list of lists, of a table with a column for every class, or of n dicts.

    class_map: a file that renames the classes, or "".

    Raises:
        InputError: something else.
    """
    if hasattr(values, "columns") and hasattr(values, "to_numpy"):  # pandas, polars
        keys = list(values.columns)
        return SoftLabelTable(
            [dict(zip(keys, row, strict=True)) for row in values.to_numpy().tolist()], keys, True, class_map
        )
    if getattr(values, "ndim", 1) == 2:
        values = values.tolist()
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in as_list(values, NAME)]
    known = [row for row in rows if row is not None]
    if known and all(isinstance(row, dict) for row in known):
        return SoftLabelTable(rows, list(known[0]), True, class_map)
    widths = {len(row) if isinstance(row, list | tuple) else 0 for row in known}
    if len(widths) != 1 or 0 in widths:
        raise InputError(f"{NAME}: give an array with a column for every class, a table, or a dict for every text")
    return SoftLabelTable(rows, list(range(widths.pop())), False, class_map)


def soft_labels_of(table: SoftLabelTable, texts: Sequence[str], classes: Sequence[str]) -> SoftLabelFiles:
    """The soft labels of the texts, checked and used as those of a file of the same rows.

    classes: what the columns of an array are, in this order.

    Raises:
        InputError: another number of rows or columns, or numbers that are no probabilities.
    """
    if len(table.rows) != len(texts):
        raise InputError(
            f"{NAME}: {len(table.rows)} rows for {len(texts)} texts; give one for each of texts, then of unlabelled,"
            " None where a text has none"
        )
    if not table.named and len(classes) != len(table.keys):
        raise InputError(f"{NAME}: {len(table.keys)} columns for the {len(classes)} classes {listing(classes)}")
    settings = SoftLabelSettings((NAME,), "probabilities", (), table.class_map)
    return combine([collect(FLAG, _rows(table, texts, classes))], settings)


def _rows(table: SoftLabelTable, texts: Sequence[str], classes: Sequence[str]) -> Iterable[SoftLabelRow]:
    for i, (row, text) in enumerate(zip(table.rows, texts, strict=True)):
        place = f"index {i}"
        numbers = row if row is None or table.named else dict(zip(classes, row, strict=True))
        if numbers is None or all(value is None or value != value for value in numbers.values()):
            yield SoftLabelRow(place, text, None)
            continue
        plain = {str(key): value.item() if isinstance(value, np.generic) else value for key, value in numbers.items()}
        yield SoftLabelRow(place, text, check_numbers(plain, "probabilities", False, FLAG, place))
