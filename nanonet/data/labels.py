"""Labels as users write them: names in any Unicode form, numbers, numbers with .0, and blanks.

A label has one form: NFC, without invisible characters, with single spaces; without `.0` where all labels of a table
are whole numbers. A blank is an empty cell, null or NaN; also -1 or -100, where the other labels are numbers from 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanonet.data.pairs import MARK
from nanonet.data.problems import listing, located, problem, shorten
from nanonet.progress import note

NO_LABEL = ("-1", "-100")  # of data sets from the hub, and of torch
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_FLOAT = re.compile(r"([+-]?[0-9]{1,18})(\.0*)?")
_BLANK = ("", "nan", "null")
_JOINERS = "\u200c\u200d"  # letters of some scripts, and of emoji, take another shape by them


@dataclass(frozen=True)
class Names:
    """The class names in label order.

    counted: they come from labels.json or a ClassLabel, so that a number counts them from 0; otherwise it is not known
    what a number means. given: they come from labels.json, which decides also where a file has a ClassLabel.
    """

    names: list[str]
    counted: bool = False
    given: bool = False


def one_form(text: str) -> str:
    """Return `text` in NFC, without invisible characters, with single spaces."""
    if text.isascii():
        return " ".join(text.split())
    shown = [
        c
        for i, c in enumerate(text)
        if c.isascii() or unicodedata.category(c) != "Cf" or c in _JOINERS and _between_letters(text, i)
    ]
    return " ".join(unicodedata.normalize("NFC", "".join(shown)).split())


def note_forms(forms: Mapping[str, set[str]], source: Path | str, column: str) -> None:
    """Tell the user of labels that were written in another form. forms: {label in one form: its other forms}."""
    if forms:
        form, written = next(iter(forms.items()))
        ways = ", ".join(ascii(way) for way in sorted(written)[:3])
        what = f"labels with another Unicode form or invisible characters: {len(forms)}"
        note(f"{located(source, '', column)}: {what} ({ways} is read as {ascii(form)})")


def _between_letters(text: str, i: int) -> bool:
    around = text[max(i - 1, 0) : i] + text[i + 1 : i + 2]
    return len(around) == 2 and not any(c.isascii() or unicodedata.category(c) == "Cf" for c in around)


def check_unicode(value: str, what: str, source: Path | str, place: str, column: str) -> str:
    """Return `value`. Raises InputError where it cannot be written as utf-8, or holds what joins pairs."""
    if MARK in value:
        raise problem(source, f"the {what} holds the noncharacter U+FDD0: delete it", place, column)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"the {what} holds half a character ({shorten(value[error.start])}): write it whole or delete it"
        raise problem(source, half, place, column) from error
    return value


def read_label(value: object, source: Path | str, place: str, column: str) -> str:
    """Return a label as text in one form; null and NaN as "". Raises InputError."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = f"{value:.1f}"
    if isinstance(value, bool) or not isinstance(value, int | str):
        what = f"the label {shorten(value, 30)} is neither a whole number nor a name: write one of the two"
        raise problem(source, what, place, column)
    return one_form(check_unicode(str(value), "label", source, place, column))


def index_labels(
    labels: Sequence[str], names: Names | None, source: Path | str, places: Sequence[str], column: str
) -> tuple[list[int], Names]:
    """Return the class of every label, -100 for a blank, and the names, which None derives from the labels.

    labels: as `read_label` gives them; places: where each stands, empty if that is not known.
    Derived names are sorted as numbers if all are whole numbers, else as text.
    Raises InputError for a label that is not among the names.
    """
    labels = without_points(labels, names)
    if names is None:
        blank = blanks(labels, None)
        found = sorted({label for label in labels if label not in blank}, key=_sort_key(labels, blank))
        names = Names(found)
        _check_two(found, labels, source, column)
    else:
        blank = blanks(labels, names)
    forms = zip(names.names, map(one_form, names.names), without_points(names.names), strict=True)
    index = {form: i for i, ways in enumerate(forms) for form in reversed(ways)}
    unknown = [i for i, label in enumerate(labels) if label not in index and label not in blank]
    for i in unknown:
        if labels[i] not in index:
            index[labels[i]] = _counted(labels[i], names, source, places[i] if places else "", column)
    return [-100 if label in blank else index[label] for label in labels], names


def note_blanks(labels: Sequence[str], names: Names, use: str, source: Path | str, column: str) -> None:
    """Tell the user how many labels are blank, and what use is made of their rows."""
    labels = without_points(labels, names)
    blank = blanks(labels, names)
    found = Counter(label for label in labels if label in blank)
    kinds = [label for label in NO_LABEL if found[label]]
    what = f"{found.total()} of {len(labels)} rows have no label and are {use}"
    if kinds:
        what += f" ({', '.join(kinds)} is no label; if it is a class, name the classes in labels.json)"
    note(f"{located(source, '', column)}: {what}")


def without_points(labels: Sequence[str], names: Names | None = None) -> list[str]:
    """Return the labels with `1.0` as `1`, if all of them are whole numbers, or among the names that they count."""
    known = set(names.names if names is not None and names.counted else ())
    numbers = [None if label in known else _FLOAT.fullmatch(label) for label in labels]
    pairs = list(zip(numbers, labels, strict=True))
    if not all(number or label in known or label.lower() in _BLANK for number, label in pairs):
        return list(labels)
    return [number[1].removeprefix("+") if number else label for number, label in pairs]


def blanks(labels: Sequence[str], names: Names | None) -> set[str]:
    """Return the labels that stand for none: empty ones, and -1 and -100 where the others are numbers from 0, or none
    is."""
    known = set() if names is None else set(names.names)
    counted = names is not None and names.counted
    empty = {label for label in labels if label.lower() in _BLANK} - known
    others = set(labels) - empty - set(NO_LABEL) - (known if counted else set())
    numbers = all(_NUMBER.fullmatch(label) and not label.startswith("-") for label in others)
    from_zero = counted or not others or "0" in others
    return empty | (set(NO_LABEL) - known if numbers and from_zero else set())


def _sort_key(labels: Sequence[str], blank: set[str]) -> Callable[[str], tuple[int, str]]:
    numbers = all(_NUMBER.fullmatch(label) for label in labels if label not in blank)
    return lambda name: (int(name) if numbers else 0, name)


def _check_two(names: list[str], labels: Sequence[str], source: Path | str, column: str) -> None:
    if not names:
        raise problem(source, "no row has a label: fill in some, of two classes or more", "", column)
    if len(names) < 2:
        what = f"every label is {shorten(names[0], 40)}: give rows of two classes or more"
        raise problem(source, what, "", column)


def _counted(label: str, names: Names, source: Path | str, place: str, column: str) -> int:
    """Return the class that an unknown label counts, from 0."""
    known = names.names
    is_number = _NUMBER.fullmatch(label) is not None
    # where names are numbers themselves, a number can only be a name
    if not is_number or any(_NUMBER.fullmatch(name) for name in without_points(known)):
        raise problem(source, f"unknown label {shorten(label, 40)}: the classes are {listing(known)}", place, column)
    if not names.counted:
        what = (
            f"the label {label} is a number, the classes are names ({listing(known, 4)}): write the list of names in"
            " label order to labels.json beside the data, or use names"
        )
        raise problem(source, what, place, column)
    if not 0 <= int(label) < len(known):
        what = f"label {label} is out of range: the {len(known)} classes {listing(known)} count from 0"
        raise problem(source, what, place, column)
    return int(label)
