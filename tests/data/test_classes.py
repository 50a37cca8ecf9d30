"""Class names that come from elsewhere than the labels."""

from __future__ import annotations

import time

import pytest

from nanonet.data.classes import rename_classes
from nanonet.errors import InputError


def test_a_hundred_thousand_names_are_compared_at_once() -> None:
    names = [f"c{i}" for i in range(100_000)]
    began = time.monotonic()
    assert rename_classes(names, {"c7": "seven"}, "x")[7] == "seven"
    assert time.monotonic() - began < 10
    with pytest.raises(InputError, match="x: two of its classes would be 'c8'"):
        rename_classes(names, {"c7": "c8"}, "x")
