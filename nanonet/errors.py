"""The one error that a user's input raises."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from a user: one line that says what is wrong, where, and the cure."""
