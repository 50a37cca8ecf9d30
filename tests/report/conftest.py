"""Reports with their figures."""

import pytest


@pytest.fixture(autouse=True)
def blank_figures() -> None:
    """Figures are drawn here."""
