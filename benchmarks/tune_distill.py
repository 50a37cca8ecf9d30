"""Times of the compiled loss by every kernel, on a GPU: the choice in csrc/cuda/plan.cuh.

    python -m nanonet.benchmarks.tune_distill [--seconds 40]

Loss and gradient in a CUDA graph, beside a copy of as many bytes as they must move. JSON lines on standard output, as
`nanonet bench --json` gives; on standard error what was left out and the best of each shape.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from nanonet.benchmarks.bench_distill import WEIGHTS, setup
from nanonet.benchmarks.measure import copy_of, graph_ms, record
from nanonet.benchmarks.tune import differs, left_out, main

SHAPES = ((4, 8192, 128256), (4, 8192, 32000), (2, 8192, 32000), (4, 8192, 8192), (4, 8192, 1000))
KERNELS = (("table", 1), ("cluster", 16), ("cluster", 8), ("cluster", 4), ("cluster", 2), ("sweep", 1), ("chip", 1))
CALLS = 5  # in a graph
DEVICE = "cuda"
OP = torch.ops.nanonet.distill_loss_into_.default


@contextmanager
def by(kernel: str, cluster: int) -> Iterator[None]:
    """Use this kernel for every loss within the block."""
    module: Any = importlib.import_module("nanonet._C_cuda")
    module.use_kernel(None if kernel == "table" else kernel, cluster)
    try:
        yield
    finally:
        module.use_kernel(None)


def records(seconds: float) -> Iterator[dict[str, Any]]:
    end = time.perf_counter() + seconds
    for K, N, C in SHAPES:
        inputs = setup(K, N, C, torch.bfloat16, DEVICE)
        weights, dstudent = torch.tensor(WEIGHTS, device=DEVICE), torch.empty_like(inputs[0])
        run = partial(OP, dstudent, *inputs, weights, None, None, 1.0, 0, 0.0)
        floor = (2 * K + 1) * N * C * 2
        copy = graph_ms({"": copy_of(floor, DEVICE)}, CALLS)[""]
        torch.cuda.empty_cache()
        own = partial(record, "distill_loss_kernel", {"K": K, "N": N, "C": C}, "bfloat16", DEVICE)
        yield own("memcpy", copy, bytes_floor=floor, floor_fraction=1.0)
        run()
        wanted = dstudent.clone()
        for kernel, cluster in KERNELS:
            name = f"{kernel} {cluster}" if cluster > 1 else kernel
            if time.perf_counter() > end:
                print(f"{C} classes, {name} and what follows: not tried, {seconds:g} seconds are over", file=sys.stderr)
                return
            dstudent.fill_(torch.nan)
            try:
                with by(kernel, cluster):
                    run()
                    if differs(dstudent, wanted):
                        raise ArithmeticError("its result is wrong")
                    times = graph_ms({"": run}, CALLS)[""]
            except Exception as error:  # rows that do not fit
                left_out(f"{C} classes, {name}", error)
            else:
                share = float(np.median(copy) / np.median(times))
                yield own(name, times, bytes_floor=floor, floor_fraction=share)
        del inputs, dstudent, wanted, run
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(records, "memcpy", "Time the compiled loss by each of its kernels.")
