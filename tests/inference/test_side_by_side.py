"""Chunks in threads: in order, not far ahead, and they end when nobody waits any more."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from nanonet.inference.side_by_side import Stopped, in_order


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_are_in_order_and_items_are_taken_little_ahead(workers: int) -> None:
    taken = 0

    def items():
        nonlocal taken
        for taken in range(1, 41):
            yield taken - 1

    def work(item: int, alive) -> int:
        time.sleep(0.002 * (item % 3 == 0))  # later ones are done earlier
        return item

    for n, result in enumerate(in_order(work, items(), workers)):
        assert result == n and taken <= n + 1 + 2 * workers
    assert taken == 40 and n == 39


def test_an_error_comes_in_its_place_and_stops_the_others() -> None:
    stopped = threading.Event()

    def work(item: int, alive) -> int:
        if item == 1:
            raise ValueError("one")
        try:
            while item > 1:
                alive()
                time.sleep(0.001)
        except Stopped:
            stopped.set()
            raise
        return item

    results = in_order(work, range(9), 2)
    assert next(results) == 0
    with pytest.raises(ValueError, match="one"):
        next(results)
    assert stopped.wait(10)


def test_workers_share_the_threads_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert set(in_order(lambda item, alive: torch.get_num_threads(), range(6), 2)) == {2}
        assert set(in_order(lambda item, alive: torch.get_num_threads(), range(6), 9)) == {1}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
