"""How the base product of the cohort's linear layer is cut into tiles, and how these are read.

A table by kind of launch, which benchmarks/tune_linear.py measures others for on a GPU. So far it is what compiles
without spills.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nanonet.kernels.launch import architecture, cdiv, describable, multiprocessors
from nanonet.kernels.low_rank import aligned


def tile(M: int, F: int, D: int, num_warps: int, num_stages: int, persistent: bool = False) -> dict[str, Any]:
    """As the kernel takes it. Persistent only with descriptors on sm_90: Triton 3.6 and 3.7 fail to compile it for
    sm_100."""
    sizes = dict(BLOCK_M=M, BLOCK_F=F, BLOCK_D=D)
    return sizes | dict(num_warps=num_warps, num_stages=num_stages, PERSISTENT=persistent)


# By kind: tiles, and how many every multiprocessor must have for the first of them to be taken.
TILES = {
    "descriptors, sm_90": ((1, tile(128, 256, 64, 8, 4)), (1, tile(128, 128, 64, 8, 4)), (0, tile(64, 128, 64, 8, 4))),
    "descriptors": ((1, tile(128, 256, 64, 8, 4)), (1, tile(128, 128, 64, 8, 4)), (0, tile(64, 128, 64, 8, 4))),
    "pointers": ((1, tile(128, 256, 64, 8, 3)), (1, tile(128, 128, 64, 8, 3)), (0, tile(64, 128, 64, 8, 3))),
    "dropout": ((1, tile(128, 128, 64, 8, 3)), (0, tile(64, 128, 64, 8, 3))),
    "large epilogue": ((0, tile(64, 128, 64, 8, 3)),),
    "unaligned": ((0, tile(64, 64, 32, 4, 3)),),
}


def mapping(x: Tensor, weight: Tensor) -> str | None:
    """Weight's order, "FD" or "DF", where x and it can be read by the copy engine of sm_90 and sm_100. An sm_120 has
    one too, but 99 KiB of shared memory, too little for the tiles."""
    if not 90 <= architecture(x.device) < 120 or not describable(x):
        return None
    return "FD" if describable(weight) else "DF" if describable(weight.mT) else None


def kind(x: Tensor, weight: Tensor, mapped: str | None, shared: bool, dropped: bool) -> str:
    """shared: students have one product in a tile; dropped: there is dropout in the epilogue. Either takes a second
    accumulator, and rows of y that lie anyhow take the registers for their addresses."""
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
    """The first of its kind that gives every multiprocessor enough tiles."""
    M, F = x.shape[-2], weight.shape[-2]
    for least, blocks in TILES[kind(x, weight, mapped, shared, dropped)]:
        tiles = cdiv(M, blocks["BLOCK_M"]) * cdiv(F, blocks["BLOCK_F"]) * (1 if shared else K)
        if tiles >= least * multiprocessors(x.device):
            break
    return blocks
