"""One line for a fault of a user's data: file, place, column, cure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nanonet.errors import InputError


def shorten(value: object, limit: int = 60) -> str:
    """Return `value` on one line of at most `limit` characters; a path loses its start, the rest its end."""
    text = " ".join((str(value) if isinstance(value, Path) else repr(value)).split())
    if len(text) <= limit:
        return text
    return "..." + text[3 - limit :] if isinstance(value, Path) else text[: limit - 3] + "..."


def listing(names: Iterable[str], most: int = 8) -> str:
    """Return the first `most` names, shortened, in one line."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(shorten(name, 30) for name in names[:most]) + more


def located(source: Path | str, place: str = "", column: str = "") -> str:
    """Return `source, place, column 'column'`, without what is empty."""
    where = [source if isinstance(source, str) else shorten(source), place]
    where += [f"column {shorten(column)}"] if column else []
    return ", ".join(part for part in where if part)


def problem(source: Path | str, what: str, place: str = "", column: str = "") -> InputError:
    """Return the error `source, place, column 'column': what`."""
    return InputError(f"{located(source, place, column)}: {what}")
