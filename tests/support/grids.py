"""Grids of tests whose every cell is worth a run, but not every run."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def sample(cells: Iterable[Any], one_in: int) -> list[Any]:
    """One cell in so many runs always, the others are slow: `make test-all` runs them. Choose a number that shares no
    factor with the lengths of the grid's axes, so that each value of each axis is among those that run."""
    return [cell if i % one_in == 0 else slow(cell) for i, cell in enumerate(cells)]


def slow(cell: Any) -> Any:
    """A cell that `make test-all` alone runs."""
    values = cell if isinstance(cell, Sequence) and not isinstance(cell, str) else (cell,)
    return pytest.param(*values, marks=pytest.mark.slow)
