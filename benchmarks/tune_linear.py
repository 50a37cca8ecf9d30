"""Times of the base product of the cohort's linear layer by tiles, on a GPU: the choice in kernels/tiles.py.

    python -m nanonet.benchmarks.tune_linear [--seconds 50]

One launch with bias and LoRA part, in a CUDA graph, beside torch's product alone. JSON lines on standard output, as
`nanonet bench --json` gives; on standard error what was left out and the best of each shape.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanonet.benchmarks.bench_linear import GPU_SHAPES, setup
from nanonet.benchmarks.measure import graph_ms, record
from nanonet.benchmarks.tune import differs, left_out, main
from nanonet.kernels.launch import architecture
from nanonet.kernels.tiles import mapping, tile

# How x and W are read, and in which tiles; the likeliest first.
CANDIDATES = (
    ("descriptors", tile(128, 256, 64, 8, 4)),
    ("pointers", tile(128, 256, 64, 8, 3)),
    ("descriptors", tile(128, 256, 64, 8, 3, persistent=True)),
    # two programs to a multiprocessor: one stores while the other multiplies
    ("descriptors", tile(128, 128, 64, 4, 3)),
    ("descriptors", tile(128, 128, 64, 8, 3)),
    ("descriptors", tile(256, 128, 64, 8, 4)),
    ("descriptors", tile(128, 128, 64, 8, 4, persistent=True)),
    ("descriptors", tile(128, 256, 64, 8, 3)),
    ("descriptors", tile(128, 256, 64, 8, 4, persistent=True)),
    ("descriptors", tile(64, 128, 64, 4, 4)),
    ("descriptors", tile(64, 256, 64, 4, 3)),
    ("descriptors", tile(64, 128, 64, 8, 4)),
    ("descriptors", tile(128, 64, 64, 4, 4)),
    ("descriptors", tile(128, 128, 128, 8, 3)),
    ("descriptors", tile(256, 128, 64, 8, 3, persistent=True)),
    ("pointers", tile(128, 128, 64, 8, 3)),
)
PLAIN = tile(64, 64, 32, 4, 3)  # by pointers: the others are compared with it
Operands = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]


def operands(shape: tuple[int, ...], phase: str, dtype: torch.dtype, device: str) -> Operands:
    """x (K,M,D), weight (K,F,D) or (F,D), bias, low (K,M,R) and b (K,F,R) of y = x W^T + low b^T + bias; of the
    gradient of x these are dy, W^T, None, dy B and A^T."""
    x, weight, bias, a, b = setup(*shape, dtype, device, stacked=shape[0] > 1, lora=True)  # type: ignore[misc]
    if phase == "forward":
        return x, weight, bias, x @ a.mT, b
    dy = torch.randn(shape[0], shape[1], shape[3], generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return dy, weight.mT, None, dy @ b, a.mT


def product(given: Operands, y: Tensor, reading: str, blocks: dict[str, Any]) -> None:
    kernels: Any = importlib.import_module("nanonet.kernels.cohort_linear")
    x, weight, bias, low, b = given
    mapped = mapping(x, weight) if reading == "descriptors" else None
    if (reading == "descriptors" and mapped is None) or (blocks["PERSISTENT"] and architecture(x.device) != 90):
        raise ValueError("not on this device")
    kernels.launch_product(x, weight, bias, low, b, None, 0.0, y, mapped, blocks, len(x))


def title(reading: str, blocks: dict[str, Any]) -> str:
    sizes = "x".join(str(blocks[f"BLOCK_{name}"]) for name in "MFD")
    kind = f"{reading}{' persistent' if blocks['PERSISTENT'] else ''}"
    return f"{sizes} {blocks['num_warps']} warps {blocks['num_stages']} stages {kind}"


def clocked(run: Callable[[], Any]) -> np.ndarray:
    return graph_ms({"": run}, calls=10)[""]


def records(seconds: float) -> Iterator[dict[str, Any]]:
    """One for torch's product and each candidate, a candidate at all shapes and phases before the next."""
    end = time.perf_counter() + seconds
    cases = []
    for shape in GPU_SHAPES:
        for phase in ("forward", "dx"):
            given = operands(shape, phase, torch.bfloat16, "cuda")
            y = given[0].new_empty(*given[0].shape[:2], given[1].shape[-2])
            product(given, y, "pointers", PLAIN)
            own = partial(record, "cohort_linear_product", dict(zip("KMDFR", shape, strict=True)), "bfloat16", "cuda")
            times = clocked(partial(torch.matmul, given[0], given[1].mT, out=torch.empty_like(y)))
            yield own("torch", times, phase=phase)
            cases.append((given, y, own, phase))
    for reading, blocks in CANDIDATES:
        name = title(reading, blocks)
        for given, wanted, own, phase in cases:
            if time.perf_counter() > end:
                print(f"{name} and those after it: not tried, {seconds:g} seconds are over", file=sys.stderr)
                return
            y = torch.full_like(wanted, torch.nan)
            try:
                product(given, y, reading, blocks)
                if differs(y, wanted):
                    raise ArithmeticError("its result is wrong")
                times = clocked(partial(product, given, y, reading, blocks))
            except Exception as error:  # such as too much shared memory, or a compiler error
                left_out(f"{name}, {phase}", error)
            else:
                yield own(name, times, phase=phase)


if __name__ == "__main__":
    main(records, "torch", "Time the base product of the linear layer in other tiles.")
