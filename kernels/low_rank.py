"""The low-rank products of a cohort's linear layer and their gradients: one pass over x forward, one over dy and one
over x backward.

    low_k  = scale_k dropout(x_k) A_k^T                                    low_rank
    dlow_k = scale_k dy_k B_k, dB_k = dy_k^T low_k, dbias_k = sum dy_k     low_rank_bwd
    dA_k   = dlow_k^T dropout(x_k)                                         low_rank_grad

Sums over rows are split into slices of rows, and dlow into ranges of columns. The partial sums go into buffers, which
`add_up` adds in a fixed order: no atomics, the same bits every time. The dropout mask is that of
reference.dropout_scale, recomputed where it is used.
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
def dropout_mask(seed, k, m, d, M, D, threshold):
    """Whether element (k,m,d) of x (K,M,D) is kept, as in reference.dropout_scale. The index wraps at 32 bits."""
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
    stride_xk,
    stride_xm,
    stride_xd,
    stride_ak,
    stride_ar,
    stride_ad,
    threshold,
    factor,  # 1 / (1 - dropout)
    R: tl.constexpr,
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
            x_tile = tl.where(dropout_mask(seed, k, m[:, None], d[None, :], M, D, threshold), scaled, 0.0)
        acc = tl.dot(x_tile, a_tile, acc, input_precision=PRECISION)
    if scale is not None:
        acc *= tl.load(scale + k).to(tl.float32)
    at = low + (k64 * M + m64[:, None]) * R + r[None, :]
    tl.store(at, acc.to(low.dtype.element_ty), mask=(m < M)[:, None] & (r < R)[None, :])


@triton.jit
def low_rank_bwd_kernel(
    dy,  # (K,M,F)
    b,  # (K,F,R)
    low,  # (K,M,R), or None with db
    scale,  # (K,) or None
    dlow,  # (ranges,K,M,R) float32 or None
    db,  # (slices,K,F,R) float32
    dbias,  # (slices,K,F) float32 or None
    M,
    F,
    stride_yk,
    stride_ym,
    stride_yf,
    rows,  # of a slice, a multiple of BLOCK_M
    R: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    tiles_r = tl.cdiv(R, BLOCK_R)
    k, K = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    part = tl.program_id(1) // tiles_r
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    r = (tl.program_id(1) % tiles_r) * BLOCK_R + tl.arange(0, BLOCK_R)
    f64 = f.to(tl.int64)
    columns = (f < F)[:, None] & (r < R)[None, :]
    factor = 1.0 if scale is None else tl.load(scale + k).to(tl.float32)
    b_tile = tl.load(b + (k * F + f64[:, None]) * R + r[None, :], mask=columns, other=0.0)
    acc = tl.zeros((BLOCK_F, BLOCK_R), tl.float32)
    total = tl.zeros((BLOCK_F,), tl.float32)
    end = min(part * rows + rows, M)
    for start in range(part * rows, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        m64, inside = m.to(tl.int64), (m < end)[:, None] & (r < R)[None, :]
        dy_at = dy + k * stride_yk + m64[:, None] * stride_ym + f64[None, :] * stride_yf
        dy_tile = tl.load(dy_at, mask=(m < end)[:, None] & (f < F)[None, :], other=0.0)
        if low is not None:
            low_tile = tl.load(low + (k * M + m64[:, None]) * R + r[None, :], mask=inside, other=0.0)
            acc = tl.dot(dy_tile.T, low_tile, acc, input_precision=PRECISION)
        if dlow is not None:
            at = dlow + ((tl.program_id(0) * K + k) * M + m64[:, None]) * R + r[None, :]
            tl.store(at, tl.dot(dy_tile, b_tile, input_precision=PRECISION) * factor, mask=inside)
        if dbias is not None:
            total += tl.sum(dy_tile.to(tl.float32), 0)
    if low is not None:
        tl.store(db + ((part * K + k) * F + f64[:, None]) * R + r[None, :], acc, mask=columns)
    if dbias is not None:
        tl.store(dbias + (part * K + k) * F + f64, total, mask=f < F)


@triton.jit
def low_rank_grad_kernel(
    x,  # (K,M,D), or (M,D) with stride_xk 0
    low,  # (K,M,R)
    seed,  # () int64, or None: no dropout on x
    da,  # (slices,K,R,D) float32
    M,
    D,
    stride_xk,
    stride_xm,
    stride_xd,
    threshold,
    factor,
    rows,  # of a slice, a multiple of BLOCK_M
    R: tl.constexpr,
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
    end = min(part * rows + rows, M)
    for start in range(part * rows, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        m64 = m.to(tl.int64)
        x_at = x_columns + m64[None, :] * stride_xm
        x_tile = tl.load(x_at, mask=(d < D)[:, None] & (m < end)[None, :], other=0.0)
        low_at = low + (k64 * M + m64[:, None]) * R + r[None, :]
        low_tile = tl.load(low_at, mask=(m < end)[:, None] & (r < R)[None, :], other=0.0)
        if seed is not None:
            scaled = (x_tile.to(tl.float32) * factor).to(x_tile.dtype)
            x_tile = tl.where(dropout_mask(seed, k, m[None, :], d[:, None], M, D, threshold), scaled, 0.0)
        acc = tl.dot(x_tile, low_tile, acc, input_precision=PRECISION)
    row = ((part * tl.num_programs(2) + k64) * R + r[None, :]) * D
    tl.store(da + row + d[:, None], acc, mask=(d < D)[:, None] & (r < R)[None, :])


@triton.jit
def add_up_kernel(
    parts,  # (count,size) float32
    out,  # (size,)
    count,
    size,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        part_at = parts + part.to(tl.int64)[:, None] * size + at[None, :]
        total += tl.sum(tl.load(part_at, mask=(part < count)[:, None] & (at < size)[None, :], other=0.0), 0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < size)


def low_rank(x: Tensor, a: Tensor, scale: Tensor | None, seed: Tensor | None, dropout: float, K: int) -> Tensor:
    """low (K,M,R)."""
    (M, D), R = x.shape[-2:], a.shape[1]
    low, scale = x.new_empty(K, M, R), None if scale is None else scale.contiguous()
    blocks = dict(BLOCK_M=64, BLOCK_D=128 if aligned(x, a) else 32, BLOCK_R=rank_block(R, x))
    low_rank_kernel[(cdiv(M, 64), cdiv(R, blocks["BLOCK_R"]), K)](
        x, a, scale, seed if dropout else None, low, M, D,
        0 if x.dim() == 2 else x.stride(0), x.stride(-2), x.stride(-1), *a.stride(), *hash_threshold(dropout, x.dtype),
        R=R, PRECISION=precision(x), **blocks, num_warps=4, num_stages=3 if dropout else 4,
    )  # fmt: skip
    return low


def low_rank_bwd(
    dy: Tensor, b: Tensor, low: Tensor | None, scale: Tensor | None, with_dlow: bool, with_sum: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dlow (K,M,R), db (K,F,R) if low is given, and the sum of dy over its rows (K,F), in dy's dtype. None for what is
    not asked for, and for the sum where this launch cannot make it."""
    (K, M, F), R = dy.shape, b.shape[-1]
    narrow, dlow = not aligned(dy, dy) or R > 32, None
    if with_dlow and R > 32:  # its partial sums per range of columns would take as much memory as dy
        dlow, with_dlow = low_rank(dy, b.mT, scale, None, 0.0, K), False
    # With db but without dlow Triton 3.6 and 3.7 pipeline dy with one buffer too few: loads overwrite rows being read
    with_sum = with_sum and with_dlow
    if low is None and not with_dlow:
        return dlow, None, None
    blocks = dict(BLOCK_M=64 if dy.element_size() == 2 else 32, BLOCK_F=128 if narrow else 256)
    blocks |= dict(BLOCK_R=rank_block(R, dy))
    ranges, ranks = cdiv(F, blocks["BLOCK_F"]), cdiv(R, blocks["BLOCK_R"])
    rows, slices = sliced(M, blocks["BLOCK_M"], ranges * ranks * K, 2 * multiprocessors(dy.device))

    def parts(wanted: bool, *shape: int) -> Tensor | None:
        return torch.empty(*shape, dtype=torch.float32, device=dy.device) if wanted else None

    buffers = (
        parts(with_dlow, ranges, K, M, R),
        parts(low is not None, slices, K, F, R),
        parts(with_sum, slices, K, F),
    )
    low_rank_bwd_kernel[(ranges, ranks * slices, K)](
        dy, b.contiguous(), low, None if scale is None else scale.contiguous(), *buffers, M, F, *dy.stride(), rows,
        R=R, PRECISION="ieee", **blocks, num_warps=8, num_stages=3,  # memory-bound; TF32 has the same fault
    )  # fmt: skip
    found, db, dbias = (None if part is None else add_up(part, dy.dtype) for part in buffers)
    return found if dlow is None else dlow, db, dbias


def low_rank_grad(x: Tensor, dlow: Tensor, seed: Tensor | None, dropout: float) -> Tensor:
    """da (K,R,D) in x's dtype."""
    (K, M, R), D = dlow.shape, x.shape[-1]
    blocks = dict(BLOCK_M=64 if x.element_size() == 2 else 32, BLOCK_D=64, BLOCK_R=rank_block(R, x))
    columns, ranks = cdiv(D, blocks["BLOCK_D"]), cdiv(R, blocks["BLOCK_R"])
    # tiles of 8 KiB: four programs per SM to have enough bytes in flight
    rows, slices = sliced(M, blocks["BLOCK_M"], columns * ranks * K, 4 * multiprocessors(x.device))
    parts = torch.empty(slices, K, R, D, dtype=torch.float32, device=x.device)
    low_rank_grad_kernel[(columns, ranks * slices, K)](
        x, dlow, seed if dropout else None, parts, M, D,
        0 if x.dim() == 2 else x.stride(0), x.stride(-2), x.stride(-1), *hash_threshold(dropout, x.dtype), rows,
        R=R, PRECISION=precision(x), **blocks, num_warps=4, num_stages=3,
    )  # fmt: skip
    return add_up(parts, x.dtype)


def add_up(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Their sum over the first dimension."""
    out = torch.empty(*parts.shape[1:], dtype=dtype, device=parts.device)
    add_up_kernel[(cdiv(out.numel(), 256),)](
        parts, out, parts.shape[0], out.numel(), BLOCK=256, PARTS=16, num_warps=4
    )  # fmt: skip
    return out


def sliced(M: int, block: int, programs: int, wanted: int) -> tuple[int, int]:
    """Rows per slice, a multiple of `block`, and the number of slices: about `wanted` programs, `programs` a slice."""
    wanted = cdiv(wanted, programs)
    rows = cdiv(cdiv(M, wanted), block) * block
    return rows, cdiv(M, rows)


def aligned(x: Tensor, weight: Tensor) -> bool:
    """Whether 16-byte vector loads are possible: a 16-bit dtype, and rows of both that Triton knows to be aligned."""
    return x.element_size() == 2 and x.shape[-1] % 16 == weight.stride(-2) * weight.stride(-1) % 16 == 0


def rank_block(R: int, x: Tensor) -> int:
    return min(max(next_power_of_2(R), 16), 64 if x.element_size() == 2 else 32)


def precision(x: Tensor) -> str:
    """As torch: float32 products are exact unless the user has allowed TF32."""
    return "tf32" if x.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest" else "ieee"


@lru_cache
def hash_threshold(dropout: float, dtype: torch.dtype) -> tuple[int, float]:
    """The hash below which an element is dropped, and 1 / (1 - dropout) rounded as in the reference."""
    factor = torch.ones((), dtype=torch.float32, device="cpu") / (1 - dropout)
    return int(dropout * 2**32), factor.to(dtype).item()
