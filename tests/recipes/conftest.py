"""The options of a short training in a folder of its own."""

from functools import partial

import pytest
from support import causal


@pytest.fixture
def arguments(tmp_path):
    return partial(causal.arguments, tmp_path)
