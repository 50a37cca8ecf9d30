"""Which columns of a table are read: the text or both texts of a pair, and the label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanonet.data.formats import extension, read_column_names
from nanonet.data.labels import check_unicode
from nanonet.data.lines import DEFAULT_LIMITS, Limits
from nanonet.data.pairs import MARK, NAMES
from nanonet.data.problems import problem, shorten

TEXT = "text_column"
PAIR = ("the first name of text_column", "the second name of text_column")


@dataclass(frozen=True)
class Columns:
    """Which columns are read, and how much of a file.

    texts: {setting: column} of one column, or of two for pairs. label: None leaves the labels out.
    classes: what a teacher knows; with them no label is needed, nor its column
    """

    texts: Mapping[str, str] = field(default_factory=lambda: {TEXT: "text"})
    label: str | None = "label"
    limits: Limits = DEFAULT_LIMITS
    classes: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, str]:
        """{setting: column}, as `read_rows` takes them."""
        return {**self.texts} | ({} if self.label is None else {"label_column": self.label})

    @property
    def shown(self) -> str:
        """The columns of the texts, for a message."""
        return ",".join(self.texts.values())

    def of(self, path: Path) -> Columns:
        """These columns in this file. Raises InputError."""
        return replace(self, texts=text_columns(path, self.shown, self.limits))

    def text(self, values: Sequence[object], source: Path | str, place: str) -> str:
        """The text of a row, or its pair as one string. values: of all columns. Raises InputError."""
        found = zip(values, self.texts.values(), strict=False)
        return MARK.join(check_text(value, source, place, column, self.limits) for value, column in found)


PAIRS_IN_MEMORY = dict(zip(PAIR, NAMES, strict=True))


def text_columns(path: Path, text_column: str, limits: Limits = DEFAULT_LIMITS) -> dict[str, str]:
    """{setting: column} of the texts in a file: the column of the name `text_column`, or the two that a comma
    separates in it where there is no such column.

    Raises InputError.
    """
    pair = _pair(text_column)
    if not pair:
        return {TEXT: text_column}
    names = read_column_names(path, {}, limits)
    if text_column not in names and extension(path) in (".csv", ".tsv"):  # perhaps with another separator
        names = read_column_names(path, pair, limits)
        if not set(pair.values()) <= set(names):
            names = read_column_names(path, {TEXT: text_column}, limits)
    return among(names, text_column)


def among(names: Iterable[str], text_column: str) -> dict[str, str]:
    """As `text_columns`, of a table that has columns of these names."""
    return {TEXT: text_column} if text_column in names else _pair(text_column) or {TEXT: text_column}


def _pair(text_column: str) -> dict[str, str]:
    """{setting: column} of two names with a comma; empty for anything else."""
    names = [name.strip() for name in text_column.split(",")]
    return dict(zip(PAIR, names, strict=True)) if len(names) == 2 and all(names) else {}


def check_text(value: object, source: Path | str, place: str, column: str, limits: Limits = DEFAULT_LIMITS) -> str:
    """`value`, if it is a text within the limits. Raises InputError."""
    if not isinstance(value, str):
        what = f"the text is {shorten(value, 30)}, not a string: write it in quotes"
        raise problem(source, what, place, column)
    if len(value) > limits.text:
        what = f"the text has more than {limits.text} characters: cut it, or raise --max-text-bytes"
        raise problem(source, what, place, column)
    return check_unicode(value, "text", source, place, column)
