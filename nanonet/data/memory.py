"""Texts and labels that are in memory: lists, arrays, and columns of pandas, polars, pyarrow and datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nanonet.data.dataset import Dataset
from nanonet.data.formats import TableRow
from nanonet.data.labels import Names, index_labels, read_label
from nanonet.data.lines import Limits
from nanonet.data.read import load_rows
from nanonet.errors import InputError

# what arrow arrays, polars' and pandas' columns, and arrays of numpy and torch call their list
LISTS = ("to_pylist", "to_list", "tolist")


def as_list(values: Any, name: str) -> list[Any]:
    """The elements of a list, of a one-dimensional array or of a column of a table. `name`: the argument, for messages.

    Raises:
        InputError: one string, a table, a dictionary, or what has no order.
    """
    if isinstance(values, str | bytes):
        raise InputError(f"{name} is one string: give a list of them")
    if isinstance(values, dict | set | frozenset) or not isinstance(values, Iterable):
        raise InputError(f"{name} is a {type(values).__name__}: give a list, an array or a column of a table")
    if hasattr(values, "columns") or getattr(values, "ndim", 1) != 1:
        raise InputError(f"{name} is a table: give one column of it")
    method = next((method for method in LISTS if hasattr(values, method)), None)
    return list(getattr(values, method)() if method else values)


def text_list(texts: Any, name: str = "texts") -> list[str]:
    """The texts of a list, an array or a column.

    Raises:
        InputError: as `as_list`; something in it is no string.
    """
    found = as_list(texts, name)
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise InputError(f"{name}[{i}] is a {type(text).__name__}: give strings")
    return found


def label_list(labels: Any, name: str = "labels") -> list[Any]:
    """Labels as Python's own objects; None for no label: None, NaN, a missing value of pandas, or the number -1."""
    found = []
    for label in as_list(labels, name):
        label = label.item() if hasattr(label, "item") else label  # a number of numpy
        missing = label is None or type(label).__name__ in ("NAType", "NaTType") or label != label
        found.append(None if missing or not isinstance(label, str) and label == -1 else label)
    return found


def label_type(labels: Sequence[Any]) -> str:
    """int, float, bool or str: what predictions of such labels should be. labels: as `label_list` gives them."""
    kinds = {type(label).__name__ for label in labels if label is not None}
    if kinds and kinds <= {"int", "float"}:
        return "float" if "float" in kinds else "int"
    return "bool" if kinds == {"bool"} else "str"


def from_names(names: Sequence[str], kind: str) -> list[Any]:
    """The labels that the names of the classes stand for. kind: as `label_type` gives it."""
    if kind == "bool":
        return [name == "True" for name in names]
    return [{"int": int, "float": float, "str": str}[kind](name) for name in names]


def dataset_of(
    texts: Any,
    labels: Any,
    unlabelled: Any,
    validation: Any,
    limits: Limits,
    test_fraction: float,
    classes: Sequence[str] = (),
) -> Dataset:
    """The dataset of texts and labels in memory, which is that of a file of the same rows.

    labels: one a text, as `label_list` takes them. unlabelled: further texts, or None.
    validation: texts and labels that are used as a test table is, or None.
    classes: what soft labels know; with them no text needs a label.

    Raises:
        InputError: says which argument, and where in it.
    """
    further = None if unlabelled is None else _rows(as_list(unlabelled, "unlabelled"))
    test = None
    if validation is not None:
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise InputError("validation: give two things, texts and their labels")
        test = _labelled_rows(validation[0], validation[1], ("validation[0]", "validation[1]"))
    return load_rows(_labelled_rows(texts, labels), further, test, limits, test_fraction, classes)


def label_indices(labels: Any, classes: Sequence[str], name: str = "labels") -> list[int]:
    """The class of every label, as an index of the names `classes`; -100 where there is none.

    Raises:
        InputError: a label is not among them.
    """
    given = label_list(labels, name)
    places = [f"index {i}" for i in range(len(given))]
    written = [read_label(_written(label), name, place, "") for label, place in zip(given, places, strict=True)]
    return index_labels(written, Names(list(classes)), name, places, "")[0]


def _labelled_rows(texts: Any, labels: Any, names: tuple[str, str] = ("texts", "labels")) -> list[TableRow]:
    """(place, [text, label]) of every text."""
    if labels is None:
        raise InputError(f"{names[1]} is None: give one a text, None or -1 where there is none")
    given, known = as_list(texts, names[0]), label_list(labels, names[1])
    if len(given) != len(known):
        raise InputError(f"{names[1]}: {len(known)} for {len(given)} texts; give one a text, None where there is none")
    return [(place, [*row, _written(label)]) for (place, row), label in zip(_rows(given), known, strict=True)]


def _rows(texts: Sequence[Any]) -> Iterator[TableRow]:
    return ((f"index {i}", [text]) for i, text in enumerate(texts))


def _written(label: Any) -> Any:
    """A label as a table has it."""
    return str(label) if isinstance(label, bool) else label
