"""The one error that a user's input raises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input from a user: one line that says what is wrong, where, and the cure."""


def escape_controls(text: str) -> str:
    """One line of `text`: white space as single spaces, other control characters as escapes, which a terminal would
    obey."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in line)


@contextmanager
def as_arguments() -> Iterator[None]:
    """Within, an InputError names arguments (`max_tokens`) where it would name flags (`--max-tokens`), and is escaped:
    nobody else does that where it is printed."""
    try:
        yield
    except InputError as error:
        words = re.sub(r"(?<![\w-])--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), str(error))
        raise InputError(escape_controls(words)) from error.__cause__
