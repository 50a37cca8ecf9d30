"""Texts and labels that are in memory: lists, arrays, and columns of pandas, polars, pyarrow and datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nanonet.data.dataset import Dataset
from nanonet.data.formats import TableRow
from nanonet.data.labels import Names, check_unicode, index_labels, read_label
from nanonet.data.lines import Limits
from nanonet.data.pairs import MARK
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
    """The texts of a list, an array or a column; of a list of pairs each as one string (pairs.py).

    Raises:
        InputError: as `as_list`; something in it is no string and no pair of strings.
    """
    found = as_list(texts, name)
    pairs = holds_pairs(found)
    return [MARK.join(check_strings(text, f"{name}[{i}]", pairs)) for i, text in enumerate(found)]


def holds_pairs(texts: Sequence[Any]) -> bool:
    """Whether the first of them is a pair."""
    return bool(texts) and _is_pair(texts[0])


def check_strings(text: Any, place: str, pair: bool) -> list[str]:
    """A string, or both of a pair. Raises InputError for anything else."""
    strings = list(text) if pair and _is_pair(text) else [text]
    if len(strings) != 1 + pair or not all(isinstance(string, str) for string in strings):
        wanted = "pairs of strings, (text, text), as the first one is" if pair else "strings"
        raise InputError(f"{place} is a {type(text).__name__}: give {wanted}")
    return [check_unicode(string, "text", place, "", "") for string in strings]


def _is_pair(text: Any) -> bool:
    return isinstance(text, tuple | list) and len(text) == 2


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

    texts: strings, or pairs of strings, then everywhere. labels: one a text, as `label_list` takes them.
    unlabelled: further texts, or None.
    validation: texts and labels that are used as a test table is, or None.
    classes: what soft labels know; with them no text needs a label.

    Raises:
        InputError: says which argument, and where in it.
    """
    texts = as_list(texts, "texts")
    further, test, pairs = None, None, holds_pairs(texts or as_list(unlabelled or [], "unlabelled"))
    if unlabelled is not None:
        further = _rows(as_list(unlabelled, "unlabelled"), "unlabelled", pairs)
    if validation is not None:
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise InputError("validation: give two things, texts and their labels")
        test = _labelled_rows(validation[0], validation[1], pairs, ("validation[0]", "validation[1]"))
    return load_rows(_labelled_rows(texts, labels, pairs), further, test, limits, test_fraction, classes, pairs)


def label_indices(labels: Any, classes: Sequence[str], name: str = "labels") -> list[int]:
    """The class of every label, as an index of the names `classes`; -100 where there is none.

    Raises:
        InputError: a label is not among them.
    """
    given = label_list(labels, name)
    places = [f"index {i}" for i in range(len(given))]
    written = [read_label(_written(label), name, place, "") for label, place in zip(given, places, strict=True)]
    return index_labels(written, Names(list(classes)), name, places, "")[0]


def _labelled_rows(
    texts: Any, labels: Any, pairs: bool, names: tuple[str, str] = ("texts", "labels")
) -> list[TableRow]:
    """(place, [text, label]) of every text, or both texts of every pair."""
    if labels is None:
        raise InputError(f"{names[1]} is None: give one a text, None or -1 where there is none")
    given, known = as_list(texts, names[0]), label_list(labels, names[1])
    if len(given) != len(known):
        raise InputError(f"{names[1]}: {len(known)} for {len(given)} texts; give one a text, None where there is none")
    rows = _rows(given, names[0], pairs)
    return [(place, [*row, _written(label)]) for (place, row), label in zip(rows, known, strict=True)]


def _rows(texts: Sequence[Any], name: str, pairs: bool) -> Iterator[TableRow]:
    for i, text in enumerate(texts):
        # of single texts it is seen later whether they are strings
        checked = check_strings(text, f"{name}[{i}]", pairs) if pairs or _is_pair(text) else [text]
        yield f"index {i}", [*checked]


def _written(label: Any) -> Any:
    """A label as a table has it."""
    return str(label) if isinstance(label, bool) else label
