"""One function in each of several connected processes.

They are forked from a server that has nothing but the imports: a fork of the tests' own process, with the threads
that other tests have started, can wait for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed

from nanonet.processes import Processes

SECONDS = 240


def _one_of(index: int, count: int, folder: Path, work: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{count}"
    distributed.init_process_group("gloo", init_method=store, rank=index, world_size=count)
    torch.save(work(Processes(index, count), *arguments), folder / f"{index}.pt")
    distributed.destroy_process_group()


def results(count: int, folder: Path, work: Callable, *arguments: object) -> list:
    """What `work(processes, *arguments)` returns in each of so many processes."""
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["nanonet.teacher.make"])
    started = torch.multiprocessing.start_processes(
        _one_of, (count, folder, work, arguments), nprocs=count, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + SECONDS
    while not started.join(1):  # it returns whenever one of them has ended
        if time.monotonic() > deadline:
            for process in started.processes:
                process.kill()
            pytest.fail(f"{work.__name__} of {count} processes has not ended in {SECONDS} s")
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(count)]
