"""Tile sizes of the base product of the cohort's linear layer, and how the tiles are loaded.

One table by kind of launch. It is not tuned on a GPU yet: it holds what compiles without spills.
benchmarks/tune_linear.py measures candidates.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nanonet.kernels.launch import architecture, cdiv, multiprocessors, tma_readable
from nanonet.kernels.low_rank import aligned


def tile(M: int, F: int, D: int, num_warps: int, num_stages: int, persistent: bool = False) -> dict[str, Any]:
    """Arguments of the kernel. Persistent only with descriptors on sm_90: Triton 3.6 and 3.7 fail to compile that for
    sm_100."""
    sizes = dict(BLOCK_M=M, BLOCK_F=F, BLOCK_D=D)
    return sizes | dict(num_warps=num_warps, num_stages=num_stages, PERSISTENT=persistent)


# By kind: tile sizes, each with the least number of tiles per SM from which it is chosen; the first that fits is taken.
TILES = {
    "descriptors, sm_90": ((1, tile(128, 256, 64, 8, 4)), (1, tile(128, 128, 64, 8, 4)), (0, tile(64, 128, 64, 8, 4))),
    "descriptors": ((1, tile(128, 256, 64, 8, 4)), (1, tile(128, 128, 64, 8, 4)), (0, tile(64, 128, 64, 8, 4))),
    "pointers": ((1, tile(128, 256, 64, 8, 3)), (1, tile(128, 128, 64, 8, 3)), (0, tile(64, 128, 64, 8, 3))),
    "dropout": ((1, tile(128, 128, 64, 8, 3)), (0, tile(64, 128, 64, 8, 3))),
    "large epilogue": ((0, tile(64, 128, 64, 8, 3)),),
    "unaligned": ((0, tile(64, 64, 32, 4, 3)),),
}


def mapping(x: Tensor, weight: Tensor) -> str | None:
    """The order of weight's dimensions, "FD" or "DF", if TMA can load x and weight on this architecture, else None.
    sm_120 has TMA too, but its 99 KiB of shared memory are too little for the tiles."""
    if not 90 <= architecture(x.device) < 120 or not tma_readable(x):
        return None
    return "FD" if tma_readable(weight) else "DF" if tma_readable(weight.mT) else None


def kind(x: Tensor, weight: Tensor, mapped: str | None, shared: bool, dropped: bool) -> str:
    """shared: the students share the product of a tile; dropped: dropout in the epilogue. Either needs a second
    accumulator, and unaligned rows of y need registers for their addresses."""
    if mapped is None and not aligned(x, weight):
        return "unaligned"
    if shared or weight.shape[-2] % 16:
        return "large epilogue"
    if dropped:
        return "dropout"
    if mapped is None:
        return "pointers"
    return "descriptors, sm_90" if architecture(x.device) == 90 else "descriptors"


def product_blocks(
    x: Tensor, weight: Tensor, mapped: str | None, K: int, shared: bool, dropped: bool
) -> dict[str, Any]:
    """The first tile size of its kind that gives every SM enough tiles."""
    M, F = x.shape[-2], weight.shape[-2]
    for least, blocks in TILES[kind(x, weight, mapped, shared, dropped)]:
        tiles = cdiv(M, blocks["BLOCK_M"]) * cdiv(F, blocks["BLOCK_F"]) * (1 if shared else K)
        if tiles >= least * multiprocessors(x.device):
            break
    return blocks
