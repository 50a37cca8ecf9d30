"""Files of texts alone: a text a line, of pairs with a tab between the two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nanonet.data.formats import TableRow
from nanonet.data.lines import DEFAULT_LIMITS, Limits, check_readable, text_lines
from nanonet.data.problems import problem


def is_text_file(path: Path) -> bool:
    """Whether the name of a file says that it has texts alone: `.txt`, or that and `.gz`."""
    return path.name.lower().endswith((".txt", ".txt.gz"))


def text_rows(path: Path, columns: int, limits: Limits = DEFAULT_LIMITS) -> Iterator[TableRow]:
    """Yield the lines of a `.txt` file that are not blank, as rows of one column, or of two with a tab between them.

    Raises InputError.
    """
    check_readable(path, limits)
    for number, line in enumerate(text_lines(path, limits), 1):
        texts = [line.rstrip("\r\n")] if columns == 1 else line.rstrip("\r\n").split("\t")
        if not line.strip():
            continue
        if len(texts) != columns:
            what = f"{len(texts) - 1} tabs: a line of a pair has one, between the texts; give a table for other texts"
            raise problem(path, what, f"line {number}")
        yield f"line {number}", [*texts]
