"""100,000 calls of the raw ops with wild arguments, in processes that may die of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = 4
FUZZ = Path(__file__).parents[1] / "support" / "fuzz_ops.py"
EXAMPLES = int(os.environ.get("NANONET_FUZZ_EXAMPLES", "36000"))
CALLS_OF_AN_EXAMPLE = 2.8  # at least


@pytest.mark.parametrize("part", range(PARTS))
def test_raw_ops_take_nobody_down(part: int) -> None:
    words = [sys.executable, str(FUZZ), str(-(-EXAMPLES // PARTS)), str(part)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout) >= CALLS_OF_AN_EXAMPLE * EXAMPLES / PARTS
