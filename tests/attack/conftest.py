"""Attacks that `make attack` repeats; NANONET_ATTACK_KILLS and NANONET_FUZZ_EXAMPLES change their counts."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.attack)
