"""Scores of logits, and how far they can be trusted."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from nanonet.inference.scores import confusion, scores, wilson


@pytest.mark.parametrize(("right", "rows"), [(5, 10), (7, 12), (0, 20), (20, 20), (95, 100), (1, 1), (1900, 2000)])
def test_intervals(right: int, rows: int) -> None:
    wanted = binomtest(right, rows).proportion_ci(0.95, "wilson")
    assert wilson(right / rows, rows) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_scores_of_logits() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [1.0, 2.0]])
    assert scores(logits, [0, 1, 1, 1]) == pytest.approx({"accuracy": 0.75, "macro_f1": (2 / 3 + 0.8) / 2})
    assert confusion(logits, [0, 1, 1, 1]) == [[1, 0], [1, 2]]
