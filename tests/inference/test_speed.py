"""Speeds of a model whose time is known."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from nanonet.data.batches import Encoded
from nanonet.inference.speed import measure_speed, megabytes, parameters_and_buffers

CPU = torch.device("cpu")


def rows(N: int) -> Encoded:
    return Encoded(torch.ones(3 * N, dtype=torch.int32), 3 * torch.arange(N + 1))


def test_rates_and_their_bounds() -> None:
    seen: list[int] = []

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        seen.append(len(ids))
        time.sleep(0.004)
        return ids

    found = measure_speed(forward, rows(100), 0, CPU, 10.0)
    assert seen == [1] * 65 + [32] * 3  # one before each
    assert found["texts_per_s"] < 250 and found["rows_per_s"] > 4 * found["texts_per_s"]
    seen.clear()
    measure_speed(forward, rows(100), 0, CPU, 0.0)
    assert seen == [1, 1, 32, 32]
    assert measure_speed(forward, rows(0), 0, CPU, 1.0) == {"rows_per_s": None, "texts_per_s": None}


def test_a_batch_that_would_take_long_is_not_run() -> None:
    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        assert len(ids) == 1
        time.sleep(0.08)
        return ids

    found = measure_speed(forward, rows(40), 0, CPU, 0.0)
    assert found["rows_per_s"] is None and found["texts_per_s"] < 12.5


def test_a_tied_tensor_counts_once() -> None:
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
    assert megabytes(*parameters_and_buffers(model)) == pytest.approx(0.08)
    model[1].weight = model[0].weight
    assert megabytes(*parameters_and_buffers(model)) == pytest.approx(0.04)
