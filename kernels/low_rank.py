"""The low-rank products of a cohort's linear layer, scale_k dropout(x_k) A_k^T and its like, and their gradients.

A gradient is a sum over the rows of x: slices of rows go into a buffer that torch adds up in their order, so there
are no atomics. The mask of the dropout is reference.dropout_scale, hashed again wherever it is needed.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanonet.kernels.launch import cdiv, multiprocessors, next_power_of_2


@triton.jit
def mix32(x):
    """The 32-bit finalizer of MurmurHash3, of uint32."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def kept(seed, k, m, d, M, D, threshold):
    """Whether element (k,m,d) of x (K,M,D) stays, as reference.dropout_scale has it; the index wraps at 32 bits."""
    index = (m.to(tl.uint32) + k * M) * D + d.to(tl.uint32)
    draw = mix32(mix32(index) + mix32(tl.load(seed).to(tl.uint32)) * 0x9E3779B1)
    return draw.to(tl.int64) >= threshold


@triton.jit
def low_rank_kernel(
    x,  # (K,M,D), or (M,D) with stride_xk 0
    a,  # (K,R,D)
    scale,  # (K,) or None
    seed,  # () int64, or None: no dropout
    low,  # (K,M,R)
    M,
    D,
    R,
    stride_xk,
    stride_xm,
    stride_xd,
    stride_ak,
    stride_ar,
    stride_ad,
    threshold,
    factor,  # of a kept element
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    k = tl.program_id(2)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    k64, m64, r64 = k.to(tl.int64), m.to(tl.int64), r.to(tl.int64)
    x_rows = x + k64 * stride_xk + m64[:, None] * stride_xm
    a_rows = a + k64 * stride_ak + r64[None, :] * stride_ar
    lane = tl.arange(0, BLOCK_D)
    acc = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for start in range(0, D, BLOCK_D):
        d, start64 = start + lane, tl.cast(start, tl.int64)
        x_at, a_at = x_rows + start64 * stride_xd, a_rows + start64 * stride_ad
        x_tile = tl.load(x_at + lane[None, :] * stride_xd, mask=(m < M)[:, None] & (d < D)[None, :], other=0.0)
        a_tile = tl.load(a_at + lane[:, None] * stride_ad, mask=(r < R)[None, :] & (d < D)[:, None], other=0.0)
        if seed is not None:
            scaled = (x_tile.to(tl.float32) * factor).to(x_tile.dtype)
            x_tile = tl.where(kept(seed, k, m[:, None], d[None, :], M, D, threshold), scaled, 0.0)
        acc = tl.dot(x_tile, a_tile, acc, input_precision=PRECISION)
    if scale is not None:
        acc *= tl.load(scale + k).to(tl.float32)
    at = low + (k64 * M + m64[:, None]) * R + r[None, :]
    tl.store(at, acc.to(low.dtype.element_ty), mask=(m < M)[:, None] & (r < R)[None, :])


@triton.jit
def low_rank_grad_kernel(
    x,  # (K,M,D), or (M,D) with stride_xk 0
    low,  # (K,M,R)
    seed,  # () int64, or None: no dropout on x
    da,  # (slices,K,R,D) float32, in the order that the strides say
    dbias,  # (slices,K,D) float32 or None: the sum of x
    M,
    D,
    R,
    stride_xk,
    stride_xm,
    stride_xd,
    stride_r,
    stride_d,
    threshold,
    factor,
    rows,  # of a slice, a multiple of BLOCK_M
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    tiles_r = tl.cdiv(R, BLOCK_R)
    k = tl.program_id(2)
    part = tl.program_id(1) // tiles_r
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    r = (tl.program_id(1) % tiles_r) * BLOCK_R + tl.arange(0, BLOCK_R)
    k64 = k.to(tl.int64)
    x_columns = x + k64 * stride_xk + d.to(tl.int64)[:, None] * stride_xd
    acc = tl.zeros((BLOCK_D, BLOCK_R), tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    end = min(part * rows + rows, M)
    for start in range(part * rows, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        m64 = m.to(tl.int64)
        x_at = x_columns + m64[None, :] * stride_xm
        x_tile = tl.load(x_at, mask=(d < D)[:, None] & (m < end)[None, :], other=0.0)
        low_at = low + (k64 * M + m64[:, None]) * R + r[None, :]
        low_tile = tl.load(low_at, mask=(m < end)[:, None] & (r < R)[None, :], other=0.0)
        if dbias is not None:
            total += tl.sum(x_tile.to(tl.float32), 1)
        if seed is not None:
            scaled = (x_tile.to(tl.float32) * factor).to(x_tile.dtype)
            x_tile = tl.where(kept(seed, k, m[None, :], d[:, None], M, D, threshold), scaled, 0.0)
        acc = tl.dot(x_tile, low_tile, acc, input_precision=PRECISION)
    row = (part * tl.num_programs(2) + k).to(tl.int64) * D
    at = da + row * R + r.to(tl.int64)[None, :] * stride_r + d[:, None] * stride_d
    tl.store(at, acc, mask=(d < D)[:, None] & (r < R)[None, :])
    if dbias is not None:
        tl.store(dbias + row + d, total, mask=d < D)


def low_rank(x: Tensor, a: Tensor, scale: Tensor | None, seed: Tensor | None, dropout: float, K: int) -> Tensor:
    """scale_k dropout(x_k) a_k^T: (K,M,R)."""
    (M, D), R = x.shape[-2:], a.shape[1]
    low, scale = x.new_empty(K, M, R), None if scale is None else scale.contiguous()
    blocks = dict(BLOCK_M=64, BLOCK_D=128 if aligned(x, a) else 32, BLOCK_R=rank_block(R))
    low_rank_kernel[(cdiv(M, 64), cdiv(R, blocks["BLOCK_R"]), K)](
        x, a, scale, seed if dropout else None, low, M, D, R,
        0 if x.dim() == 2 else x.stride(0), x.stride(-2), x.stride(-1), *a.stride(), *hash_threshold(dropout, x.dtype),
        PRECISION=precision(x), **blocks, num_warps=4, num_stages=3,
    )  # fmt: skip
    return low


def low_rank_grad(
    x: Tensor, low: Tensor, seed: Tensor | None, dropout: float, K: int, transposed: bool, with_sum: bool = False
) -> tuple[Tensor, Tensor | None]:
    """low_k^T dropout(x_k): (K,R,D), or `transposed` (K,D,R); and the sum of x over its rows (K,D); float32."""
    (M, D), R = x.shape[-2:], low.shape[-1]
    blocks = dict(BLOCK_M=64 if x.element_size() == 2 else 32, BLOCK_D=64, BLOCK_R=rank_block(R))
    columns, ranks = cdiv(D, blocks["BLOCK_D"]), cdiv(R, blocks["BLOCK_R"])
    wanted = cdiv(2 * multiprocessors(x.device), columns * ranks * K)  # two programs a multiprocessor
    rows = cdiv(cdiv(M, wanted), blocks["BLOCK_M"]) * blocks["BLOCK_M"]
    slices = cdiv(M, rows)
    parts = torch.empty(slices, K, *((D, R) if transposed else (R, D)), dtype=torch.float32, device=x.device)
    sums = torch.empty(slices, K, D, dtype=torch.float32, device=x.device) if with_sum else None
    low_rank_grad_kernel[(columns, ranks * slices, K)](
        x, low, seed if dropout else None, parts, sums, M, D, R,
        0 if x.dim() == 2 else x.stride(0), x.stride(-2), x.stride(-1),
        *((1, R) if transposed else (D, 1)), *hash_threshold(dropout, x.dtype), rows,
        PRECISION=precision(x), **blocks, num_warps=4, num_stages=3,
    )  # fmt: skip
    return parts.sum(0), None if sums is None else sums.sum(0)


def aligned(x: Tensor, weight: Tensor) -> bool:
    """Whether 16 bytes at a time can be loaded: a 16-bit type, and rows of both that Triton knows to be aligned."""
    return x.element_size() == 2 and x.shape[-1] % 16 == weight.stride(-2) * weight.stride(-1) % 16 == 0


def rank_block(R: int) -> int:
    return min(max(next_power_of_2(R), 16), 64)


def precision(x: Tensor) -> str:
    """float32 products as torch does them: exact unless the user has allowed TF32."""
    return "tf32" if x.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest" else "ieee"


@lru_cache
def hash_threshold(dropout: float, dtype: torch.dtype) -> tuple[int, float]:
    """The hash below which an element is dropped, and the factor of the others, rounded as the reference does."""
    factor = torch.ones((), dtype=torch.float32, device="cpu") / (1 - dropout)
    return int(dropout * 2**32), factor.to(dtype).item()
