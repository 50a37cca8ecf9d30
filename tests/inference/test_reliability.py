"""Confidence against accuracy, by hand and against another way to compute it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nanonet.inference.reliability import BINS, reliability


def test_by_hand() -> None:
    # confidences 0.9, 0.9, 0.6, 0.8: the two of 0.9 share a bin, one of them is right
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.2, 0.8]]).log()
    found = reliability(logits, [0, 0, 0, 1])
    assert found["mean_confidence"] == pytest.approx(0.8)
    assert found["calibration_error"] == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.6) + abs(1 - 0.8)) / 4)
    # 3.6 rows are 3, 2.8 are 2, 2 are 2
    assert found["accuracy_of_most_confident"] == pytest.approx({"90": 2 / 3, "70": 0.5, "50": 0.5})
    assert [one["rows"] for one in found["bins"]] == [1, 1, 2]


def test_calibrated_labels_have_a_small_error() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 4, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0].tolist()
    found, shy = reliability(logits, labels), reliability(logits / 3, labels)
    assert found["calibration_error"] < 0.02 < 0.1 < shy["calibration_error"]
    top = found["accuracy_of_most_confident"]
    assert top["50"] > top["70"] > top["90"]
    # numpy's histogram has the same bins, but for their ends
    p = logits.double().softmax(-1)
    right, edges = (p.argmax(-1) == torch.tensor(labels)).numpy(), np.linspace(0, 1, BINS + 1)
    gap = np.histogram(p.amax(-1), edges, weights=right - p.amax(-1).numpy())[0]
    assert found["calibration_error"] == pytest.approx(np.abs(gap).sum() / len(labels), abs=1e-5)


def test_certainty_and_one_row() -> None:
    found = reliability(torch.tensor([[1000.0, 0.0]]), [1])
    assert found["mean_confidence"] == found["calibration_error"] == 1
    assert found["accuracy_of_most_confident"] == {"90": 0, "70": 0, "50": 0}
    with pytest.raises(ValueError, match="logits"):
        reliability(torch.zeros(2, 3), [0])
