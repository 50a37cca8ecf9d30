"""Chunks of texts in threads: while one chunk is tokenised another runs through the model, and results stay in order.

Threads are enough: the tokenizers library and torch compute without Python's lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from nanonet.device import threads

ROWS_AT_ONCE = 1024  # texts of a chunk: enough for batches of similar length, and results soon
WORKERS, MOST_WORKERS = 2, 256

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """Nobody waits for this result any more."""


def in_order(
    work: Callable[[Item, Callable[[], None]], Result], items: Iterable[Item], workers: int = WORKERS
) -> Iterator[Result]:
    """work(item, alive) of every item, in the order of the items; `workers` threads run it side by side, each with its
    share of torch's threads.

    At most 2 * workers + 1 items are taken before the first of their results is. `work` calls alive()
    now and then, which raises Stopped once no more results are wanted: Ctrl-C waits for a batch, not for a chunk.
    """
    stopped = threading.Event()

    def alive() -> None:
        if stopped.is_set():
            raise Stopped

    waiting: deque[Future[Result]] = deque()
    # the pool within: its threads take their number of torch threads when they start
    with threads(max(1, torch.get_num_threads() // workers)), ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item, alive))
                while waiting and (len(waiting) > 2 * workers or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
