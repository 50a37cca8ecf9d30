"""Attacks that `make attack` repeats; seeds and counts are fixed, NANONET_ATTACK_* and NANONET_FUZZ_EXAMPLES change them."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.attack)
