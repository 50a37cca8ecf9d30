"""The teacher's term of the loss against a teacher that is known by its k likeliest classes, and its gradient.

A program has one row of one student. It takes the row's statistics, gathers the k classes, and for a tail in a bucket
sums the others again without them: subtracted from the whole they would leave little but rounding. To leave them out of
a tile it walks through the ids, which are sorted. Outside of the k classes the gradient is a multiple of the student's
probabilities; the k classes are stored one by one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nanonet import reference_topk
from nanonet.kernels.divergences import (
    KL,
    LOG2_E,
    REVERSE_KL,
    SKEW_KL,
    SKEW_REVERSE_KL,
    SYMMETRIC_KL,
    exp,
    slope,
    times,
    value,
)
from nanonet.kernels.rowwise import INF, LN2, add_tile, load, merge, statistics

LEFT_OUT = tl.constexpr(int(reference_topk.Tail.LEFT_OUT))
BUCKET = tl.constexpr(int(reference_topk.Tail.BUCKET))
RENORMALISED = tl.constexpr(int(reference_topk.Tail.RENORMALISED))
LEAST_TAIL = tl.constexpr(reference_topk.LEAST_TAIL)


@triton.jit
def sum_outside(row, ids, C, scale, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """log2 sum exp2(x scale) of the classes that are none of the sorted ids; -inf where there is none."""
    tile = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    zeros = tl.zeros((LANES,), tl.float32)
    lanes = ((zeros - INF,), (zeros,), (zeros,))
    j = tl.full((), 0, tl.int32)
    id = tl.load(ids + j)
    for start in range(0, C, LANES * WIDTH):
        c = start + tile
        x = load(row + c, c < C, -INF)
        while id < tl.minimum(start + LANES * WIDTH, C):
            x = tl.where(c == id, -INF, x)
            j += 1
            id = tl.load(ids + j)
        lanes = add_tile(lanes, (x,), scale, 1, False)
    maximum = tl.max(lanes[0][0], 0)
    base = tl.where(maximum == -INF, 0.0, maximum)
    return base * scale + merge(lanes[0][0], lanes[1][0], base, scale)


@triton.jit
def class_sums(l_p, l_q, present, mix, TAIL: tl.constexpr, DIVERGENCE: tl.constexpr):
    """value, slope and q of each class; those of LEFT_OUT without what sums to 0 only over a whole distribution."""
    p = tl.where(present, exp(l_p), 0.0)
    q = tl.where(present, exp(l_q), 0.0)
    each = value(l_p, l_q, p, q, mix, DIVERGENCE)
    g = slope(l_p, l_q, p, q, mix, DIVERGENCE)
    if TAIL == LEFT_OUT:
        beta, rest, _ = mix
        if DIVERGENCE == KL:
            each -= q - p
        elif DIVERGENCE == REVERSE_KL:
            each -= p - q
            g += q
        elif DIVERGENCE == SYMMETRIC_KL:
            each -= (beta - rest) * (q - p)
            g += rest * q
        elif DIVERGENCE == SKEW_KL:
            each -= rest * (q - p)
        elif DIVERGENCE == SKEW_REVERSE_KL:
            each -= rest * (p - q)
            g += q
    return tl.where(present, each, 0.0), tl.where(present, g, 0.0), q


@triton.jit
def log_sum(l, present):
    """log sum exp(l) of those that are present; 0 where none is."""
    largest = tl.max(tl.where(present, l, -INF), 0)
    base = tl.where(largest == -INF, 0.0, largest)
    total = tl.sum(tl.where(present, exp(l - base), 0.0), 0)
    return tl.where(total == 0, 0.0, base + tl.log(total))


@triton.jit
def topk_fwd_kernel(
    student,  # (K,N,C), rows contiguous
    ids,  # (N,k+1) int32, sorted; C where a row has fewer, and last
    logprobs,  # (N,k) float32, in the order of ids
    bad,  # (N,): rows that are nan
    terms,  # (K,N)
    stats,  # (K,N,4): maximum, log2 sum below it at the temperature, and outside of S coefficient exp2(l - shift)
    own,  # (K,N,k): the slope of each id, without the upstream
    N,
    C,
    k,
    stride_k,
    stride_n,
    temperature,
    mix,
    TAIL: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    n = (tl.program_id(0) % N).to(tl.int64)
    at = (tl.program_id(0) // N).to(tl.int64) * N + n
    row = student + (tl.program_id(0) // N).to(tl.int64) * stride_k + n * stride_n
    scale = LOG2_E / temperature

    tile = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    zeros = tl.zeros((LANES,), tl.float32)
    maxima, sums, _ = statistics((row,), tile, zeros, C, scale, 1, False, LANES * WIDTH, 2)
    maximum, lse = maxima[0], sums[0]
    i = tl.arange(0, BLOCK_K)
    id = tl.load(ids + n * (k + 1) + i, mask=i < k, other=C)
    present = id < C
    l_p = tl.where(present, tl.load(logprobs + n * k + i, mask=present, other=0.0), -INF)
    x = load(row + id, present, 0.0)
    l_q = tl.where(present, ((x - maximum) * scale - lse) * LN2, -INF)

    if TAIL == RENORMALISED:
        l_p = tl.where(present, l_p - log_sum(l_p, present), -INF)
        l_q = tl.where(present, l_q - log_sum(l_q, present), -INF)
    each, g, q = class_sums(l_p, l_q, present, mix, TAIL, DIVERGENCE)
    total, slopes = tl.sum(each, 0), tl.sum(g, 0)
    shift, coefficient = 0.0, 0.0
    if TAIL == LEFT_OUT:
        coefficient = -slopes
    if TAIL == BUCKET:
        outside = sum_outside(row, ids + n * (k + 1), C, scale, LANES, WIDTH)
        shift = outside - maximum * scale - lse
        some = tl.sum(present.to(tl.int32), 0) < C
        p_rest = tl.maximum(1 - tl.sum(tl.where(present, exp(l_p), 0.0), 0), LEAST_TAIL)
        l_rest = tl.where(some, shift * LN2, -INF)
        log_p_rest = tl.where(some, tl.log(p_rest), -INF)
        rest, g_rest, q_rest = class_sums(log_p_rest, l_rest, some, mix, TAIL, DIVERGENCE)
        total += rest
        slopes += g_rest
        coefficient = tl.where(l_rest == -INF, 0.0, g_rest - times(q_rest, slopes))
        shift = tl.where(l_rest == -INF, 0.0, shift)
    wrong = tl.load(bad + n) != 0
    nan = tl.where(wrong, float("nan"), 0.0)
    tl.store(terms + at, total * temperature * temperature + nan)
    tl.store(stats + at * 4, maximum)
    tl.store(stats + at * 4 + 1, lse)
    tl.store(stats + at * 4 + 2, shift)
    tl.store(stats + at * 4 + 3, coefficient * temperature + nan)
    tl.store(own + at * k + i, (g - times(q, slopes)) * temperature + nan, mask=i < k)


@triton.jit
def topk_bwd_kernel(
    upstream,  # (K,N): 0 masks
    student,  # as above
    ids,
    stats,
    own,
    dstudent,  # (K,N,C)
    N,
    C,
    k,
    stride_k,
    stride_n,
    temperature,
    ADD: tl.constexpr,  # to what stands in dstudent
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = (tl.program_id(0) % N).to(tl.int64)
    at = (tl.program_id(0) // N).to(tl.int64) * N + n
    row = student + (tl.program_id(0) // N).to(tl.int64) * stride_k + n * stride_n
    out = dstudent + at * C
    scale = LOG2_E / temperature
    u = tl.load(upstream + at)
    maximum = tl.load(stats + at * 4)
    below = tl.load(stats + at * 4 + 1) + tl.load(stats + at * 4 + 2)
    coefficient = tl.load(stats + at * 4 + 3) * u
    if u != 0 or not ADD:
        i = tl.arange(0, BLOCK_K)
        id = tl.load(ids + n * (k + 1) + i, mask=i < k, other=C)
        present = id < C
        ds = tl.load(own + at * k + i, mask=present, other=0.0)
        ds = tl.where(u == 0, 0.0, ds * u)
        if ADD:
            ds += tl.load(out + id, mask=present, other=0.0).to(tl.float32)
        tl.debug_barrier()  # read before the tiles are written, and written after them
        for start in range(0, C, BLOCK):
            c = start + tl.arange(0, BLOCK)
            inside = c < C
            x = load(row + c, inside, 0.0)
            d = times(coefficient, tl.exp2((x - maximum) * scale - below))
            d = tl.where(u == 0, 0.0, d)
            if ADD:
                d += tl.load(out + c, mask=inside, other=0.0).to(tl.float32)
            tl.store(out + c, d.to(dstudent.dtype.element_ty), mask=inside)
        tl.debug_barrier()
        tl.store(out + id, ds.to(dstudent.dtype.element_ty), mask=present)
