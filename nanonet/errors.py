"""The one error that a user's input raises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input from a user: one line that says what is wrong, where, and the cure."""


@contextmanager
def as_arguments() -> Iterator[None]:
    """Within, an InputError names arguments (`max_tokens`) where it would name flags (`--max-tokens`)."""
    try:
        yield
    except InputError as error:
        words = re.sub(r"(?<![\w-])--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), str(error))
        raise InputError(words) from error.__cause__
