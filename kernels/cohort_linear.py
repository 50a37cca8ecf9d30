"""One linear layer for K students: a GEMM with the low-rank part, the bias and the dropout in its epilogue.

    low_k = scale_k dropout(x_k) A_k^T                  low_rank.py, one launch that reads x once
    y_k   = x_k W_k^T + low_k B_k^T + b_k               cohort_linear_kernel, every student in one launch

    dlow_k, dB_k, dbias_k                               low_rank.py, one launch that reads dy once, and low
    dx_k  = dy_k W_k + dropout(dlow_k A_k)              cohort_linear_kernel on dy, W^T, dlow and A^T
    dA_k  = dlow_k^T dropout(x_k)                       low_rank.py, one launch that reads x once

Fusing low into the GEMM's main loop would read x once less, but multiply by A once per column of tiles and keep the
dropout mask in registers. The gradient of W is torch's own product.

On sm_90 and sm_100 the main loop loads x and W by TMA if their rows start on 16-byte boundaries: one thread issues the
load of a tile, and addresses take no registers. Otherwise it loads by pointers. The tile sizes are in tiles.py.
No launcher waits for the device. float64 and empty tensors are left to the reference.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from nanonet.kernels.launch import cdiv, multiprocessors, tma_descriptor
from nanonet.kernels.low_rank import (
    dropout_mask,
    hash_threshold,
    low_rank,
    low_rank_bwd,
    low_rank_grad,
    precision,
    rank_block,
)
from nanonet.kernels.tiles import mapping, product_blocks


@triton.jit
def cohort_linear_kernel(
    x,  # (K,M,D), or (M,D) with stride_xk 0; a pointer, or with MAPPED a descriptor of (K,M,D)
    weight,  # (K,F,D), or (F,D) with stride_wk 0; a pointer, or a descriptor of (K,F,D) or (K,D,F)
    bias,  # (K,F) or None
    low,  # (K,M,R) or None
    b,  # (K,F,R)
    seed,  # () int64, or None: no dropout on the low-rank product
    y,  # (K,M,F), or (M,F) with SUM
    groups,  # of students: K / STUDENTS
    M,
    D,
    F,
    stride_xk,
    stride_xm,
    stride_xd,
    stride_wk,
    stride_wf,
    stride_wd,
    stride_bk,
    stride_bf,
    stride_br,
    threshold,
    factor,
    MAPPED: tl.constexpr,  # "FD" or "DF": x and weight are descriptors, weight's dimensions in this order
    R: tl.constexpr,  # few values; lets the compiler see aligned rows
    BASES: tl.constexpr,  # products x_k W_k^T summed in one tile
    STUDENTS: tl.constexpr,  # students that share the product of a tile
    SUM: tl.constexpr,  # sum these students into one y, else each has its own
    PERSISTENT: tl.constexpr,  # a program computes many tiles, and loads the next while it stores one
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,  # rows of tiles that run together and share tiles of W in the L2
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_f = tl.cdiv(F, BLOCK_F)
    programs = tl.num_programs(0)
    turns = tl.cdiv(groups * tiles_m * tiles_f - tl.program_id(0), programs) if PERSISTENT else 1
    for turn in tl.range(0, turns, flatten=PERSISTENT):
        tile = turn * programs + tl.program_id(0)
        student = tile // (tiles_m * tiles_f) * STUDENTS
        pid = tile % (tiles_m * tiles_f)
        first = pid // (GROUP * tiles_f) * GROUP
        height = min(tiles_m - first, GROUP)
        inner = pid % (GROUP * tiles_f)
        m0, f0 = (first + inner % height) * BLOCK_M, inner // height * BLOCK_F
        m, f = m0 + tl.arange(0, BLOCK_M), f0 + tl.arange(0, BLOCK_F)
        inside = (m < M)[:, None] & (f < F)[None, :]
        # rows outside wrap around, so that the main loop needs no mask for them
        m64, f64, lane = (m % M).to(tl.int64), (f % F).to(tl.int64), tl.arange(0, BLOCK_D)

        acc = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
        for base in range(0, BASES):
            k = student + base
            if MAPPED is None:
                k64 = k.to(tl.int64)
                x_rows = x + k64 * stride_xk + m64[:, None] * stride_xm
                w_rows = weight + k64 * stride_wk + f64[None, :] * stride_wf
                for start in range(0, D, BLOCK_D):
                    d, start64 = start + lane, tl.cast(start, tl.int64)
                    x_at, w_at = x_rows + start64 * stride_xd, w_rows + start64 * stride_wd
                    x_tile = tl.load(x_at + lane[None, :] * stride_xd, mask=(d < D)[None, :], other=0.0)
                    w_tile = tl.load(w_at + lane[:, None] * stride_wd, mask=(d < D)[:, None], other=0.0)
                    acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION)
            else:  # TMA fills with zeros outside
                x_k, w_k = tl.where(stride_xk == 0, 0, k), tl.where(stride_wk == 0, 0, k)
                for start in range(0, D, BLOCK_D):
                    x_tile = x.load([x_k, m0, start]).reshape(BLOCK_M, BLOCK_D)
                    if MAPPED == "FD":
                        w_tile = weight.load([w_k, f0, start]).reshape(BLOCK_F, BLOCK_D).T
                    else:
                        w_tile = weight.load([w_k, start, f0]).reshape(BLOCK_D, BLOCK_F)
                    acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION)

        for j in range(0, STUDENTS):
            k = student + j
            k64 = k.to(tl.int64)
            out = acc
            if low is not None:
                product = tl.zeros((BLOCK_M, BLOCK_F), tl.float32) if seed is not None else acc
                for start in range(0, R, BLOCK_R):
                    r = start + tl.arange(0, BLOCK_R)
                    low_at = low + (k64 * M + m64[:, None]) * R + r[None, :]
                    b_at = b + k64 * stride_bk + f64[None, :] * stride_bf + r[:, None] * stride_br
                    low_tile = tl.load(low_at, mask=(r < R)[None, :], other=0.0)
                    b_tile = tl.load(b_at, mask=(r < R)[:, None], other=0.0)
                    product = tl.dot(low_tile, b_tile, product, input_precision=PRECISION)
                out = product
                if seed is not None:
                    scaled = product * factor
                    out = acc + tl.where(dropout_mask(seed, k, m[:, None], f[None, :], M, F, threshold), scaled, 0.0)
            if bias is not None:
                out += tl.load(bias + k64 * F + f64)[None, :].to(tl.float32)
            if SUM:
                acc = out
            else:
                at = y + (k64 * M + m64[:, None]) * F + f[None, :]
                tl.store(at, out.to(y.dtype.element_ty), mask=inside)
        if SUM:
            tl.store(y + m64[:, None] * F + f[None, :], acc.to(y.dtype.element_ty), mask=inside)


def cohort_linear_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    scale: Tensor | None,
    seed: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """y (K,M,F), and low (K,M,R) or (0,) without LoRA, in x's dtype."""
    carriers = ((x, 3), (weight, 3), (bias, 2), (lora_a, 3))
    K = next((t.shape[0] for t, dims in carriers if t is not None and t.dim() == dims), 1)
    low = None if lora_a is None else low_rank(x, lora_a, scale, seed, dropout, K)
    y = x.new_empty(K, x.shape[-2], weight.shape[-2])
    _product(x, weight, bias, low, lora_b, None, 0.0, y, shared=x.dim() == weight.dim() == 2)
    return y, x.new_empty(0) if low is None else low


def cohort_linear_bwd(
    dy: Tensor,
    x: Tensor | None,
    low: Tensor | None,
    weight: Tensor,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    scale: Tensor | None,
    seed: Tensor | None,
    dropout: float,
    shared_x: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dweight, dbias, dlora_a, dlora_b; an empty tensor where `needs` is False."""
    (K, M, _), D = dy.shape, weight.shape[-1]
    dx, dweight, dbias, da, db = (dy.new_empty(0) for _ in range(5))
    dlow = None
    if lora_b is not None and (needs[0] or needs[3] or needs[4]):
        dlow, *sums = low_rank_bwd(dy, lora_b, low if needs[4] else None, scale, needs[0] or needs[3], needs[2])
        db, dbias = (empty if value is None else value for empty, value in zip((db, dbias), sums, strict=True))
    if needs[0]:
        dx = dy.new_empty((M, D) if shared_x else (K, M, D))
        # W and x shared: sum over the students before the product
        base = dy.sum(0) if shared_x and weight.dim() == 2 else dy
        turned = None if lora_a is None else lora_a.mT
        _product(base, weight.mT, None, dlow, turned, seed, dropout, dx, shared=shared_x, summed=shared_x, K=K)
    if needs[1] and x is not None:
        dweight = _weight_gradient(dy, x, weight)
    if needs[3] and dlow is not None and x is not None:
        da = low_rank_grad(x, dlow, seed, dropout)
    if needs[2] and not dbias.numel():
        dbias = dy.sum(1)
    return dx, dweight, dbias, da, db


def _product(x, weight, bias, low, b, seed, dropout, y, *, shared, summed=False, K=None) -> None:
    """y = x W^T + low b^T + bias. shared: the students share one product; summed: and one y."""
    K = y.shape[0] if K is None else K
    mapped = mapping(x, weight)
    blocks = product_blocks(x, weight, mapped, K, shared, seed is not None and dropout > 0)
    launch_product(x, weight, bias, low, b, seed, dropout, y, mapped, blocks, K, shared, summed)


def launch_product(x, weight, bias, low, b, seed, dropout, y, mapped, blocks, K, shared=False, summed=False) -> None:
    """`_product` with given tile sizes and a given way to load x and weight."""
    (M, D), F, R = x.shape[-2:], weight.shape[-2], 0 if low is None else low.shape[-1]
    groups = 1 if shared else K
    programs = cdiv(M, blocks["BLOCK_M"]) * cdiv(F, blocks["BLOCK_F"]) * groups
    if blocks["PERSISTENT"]:
        programs = min(programs, multiprocessors(x.device))
    operands = x, weight
    if mapped is not None:
        sizes = {name: blocks[f"BLOCK_{name}"] for name in "MDF"}
        turned = weight if mapped == "FD" else weight.mT
        operands = tma_descriptor(x, sizes["M"], sizes["D"]), tma_descriptor(turned, *(sizes[name] for name in mapped))
    cohort_linear_kernel[(programs,)](
        *operands, None if bias is None else bias.contiguous(), low, b, seed if dropout else None, y,
        groups, M, D, F,
        0 if x.dim() == 2 else x.stride(0), x.stride(-2), x.stride(-1),
        0 if weight.dim() == 2 else weight.stride(0), weight.stride(-2), weight.stride(-1),
        *((0, 0, 0) if b is None else b.stride()), *hash_threshold(dropout, x.dtype),
        MAPPED=mapped, R=R, BASES=K if summed and weight.dim() == 3 else 1, STUDENTS=K if shared else 1, SUM=summed,
        PRECISION=precision(x), BLOCK_R=rank_block(R, x), GROUP=8, **blocks,
    )  # fmt: skip


def _weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """By torch; if W is shared, the students' rows are one long batch."""
    if weight.dim() == 3:
        return dy.mT @ x
    if x.dim() == 2:
        return dy.sum(0).mT @ x
    return dy.flatten(0, 1).mT @ x.flatten(0, 1)
