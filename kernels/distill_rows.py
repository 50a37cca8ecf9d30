"""The loss of rows that fit in registers, those of K students and the teacher at once: everything is read once.

With `weights` one launch makes the loss, its means and its gradient; without, the terms and the row statistics.
"""

import triton
import triton.language as tl

from nanonet.kernels.divergences import CROSS_ENTROPY, KL, LOG2_E, MSE, slope, teacher_value
from nanonet.kernels.reduction import (
    add_row,
    cross_entropy,
    denominators_of,
    finish,
    label_of,
    shares_of,
    store_stats,
    store_terms,
    upstream_of,
)
from nanonet.kernels.rowwise import cohort, gradient, load_logits, log_softmax, log_sum_exp, logits_view, peers_value


@triton.jit
def row_terms(
    view,
    logits,
    stats,
    ls,
    qs,
    shared,
    label,  # what `label_of` gave
    inside,
    mix,
    term_scale,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    HAS_LABEL: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    """ce, teacher and peers of every student, and its sum g."""
    y, labelled, valid = label
    maxima, _, lse_1 = stats
    values = ()
    slope_sums = ()
    for k in tl.static_range(K):
        zero = tl.zeros_like(maxima[k])
        ce, teacher, peers, slope_sum = zero, zero, zero, zero
        if HAS_LABEL:
            ce = cross_entropy(view[k], y, labelled, valid, maxima[k], lse_1[k])
        if COUNT > K:
            each = teacher_value(logits[k], logits[K], ls[K], ls[k], qs[K], qs[k], mix, DIVERGENCE)
            teacher = tl.sum(tl.where(inside, each, 0.0), 1, keep_dims=True) * term_scale
            if DIVERGENCE != KL and DIVERGENCE != CROSS_ENTROPY and DIVERGENCE != MSE:
                each = slope(ls[K], ls[k], qs[K], qs[k], mix, DIVERGENCE)
                slope_sum = tl.sum(tl.where(inside, each, 0.0), 1, keep_dims=True)
        if K > 1:
            each = peers_value(logits[k], ls[k], qs[k], shared, K, DIVERGENCE)
            peers = tl.sum(tl.where(inside, each, 0.0), 1, keep_dims=True) * (term_scale / (K - 1))
        values = values + ((ce, teacher, peers),)
        slope_sums = slope_sums + (slope_sum,)
    return values, slope_sums


@triton.jit
def distill_rows_kernel(
    student,  # (K,N,C), rows contiguous
    teacher,  # (N,C) or None
    label,  # (N,) or None
    weights,  # (3,), or None for the terms alone
    row_weight,  # (N,) or (K,N) or None
    denominators,  # (2,) or (2,K), or None: counted here
    terms,  # (3,K,N), and stats (K+1,N,4): without weights
    stats,
    loss,  # (), and means (3,K): with weights
    means,
    dstudent,  # (K,N,C) or None
    partials,  # (programs,SLOTS)
    counter,  # () int32, 0 before and after
    N,
    C,
    stride_k,
    stride_n,
    stride_t,
    stride_rk,
    stride_rn,
    stride_di,
    stride_dk,
    inv_tau,
    term_scale,  # tau^2, or 1/C for mse
    slope_scale,  # tau, or 2/C for mse
    mix,  # divergences.mix_of(beta)
    K: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    UNIT: tl.constexpr,  # temperature is 1
    PER_STUDENT: tl.constexpr,  # row_weight is (K,N)
    SLOTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    HAS_LABEL: tl.constexpr = label is not None
    COUNT: tl.constexpr = K + 1 if teacher is not None else K
    c = tl.arange(0, BLOCK_C)[None, :]
    slot = tl.arange(0, SLOTS)
    sums = tl.zeros((SLOTS,), tl.float32)
    if weights is not None:
        totals = denominators_of(
            label, row_weight, denominators, N, stride_rk, stride_rn, stride_di, stride_dk, K, PER_STUDENT, 1024
        )

    block = tl.program_id(0)
    while block * BLOCK_N < N:
        n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
        present = n < N
        inside = present & (c < C)
        view = logits_view(student, teacher, n, stride_k, stride_n, stride_t, K)
        logits = load_logits(view, c, inside, COUNT)
        maxima = ()
        for r in tl.static_range(COUNT):
            maxima = maxima + (tl.max(logits[r], 1, keep_dims=True),)
        lse_tau = log_sum_exp(logits, maxima, inv_tau * LOG2_E, COUNT)
        row = (maxima, lse_tau, lse_tau if UNIT else log_sum_exp(logits, maxima, LOG2_E, COUNT))
        ls, qs = log_softmax(logits, row, inv_tau * LOG2_E, COUNT)
        shared = cohort(logits, ls, qs, K, DIVERGENCE)
        y, labelled, valid = label_of(label, n, present, C)
        values, slope_sums = row_terms(
            view, logits, row, ls, qs, shared, (y, labelled, valid), inside, mix, term_scale,
            K, COUNT, HAS_LABEL, DIVERGENCE,
        )  # fmt: skip
        if weights is None:
            store_terms(terms, n, present, values, N, K)
            store_stats(stats, n, present, row, slope_sums, N, K, COUNT)
        else:
            shares = shares_of(
                row_weight, n, present, labelled, totals, stride_rk, stride_rn, K,
                not PER_STUDENT and denominators is None,
            )  # fmt: skip
            sums = add_row(sums, slot, shares, values, K)
            if dstudent is not None:
                upstream = upstream_of(weights, shares, valid, slope_scale, K)
                out = logits_view(dstudent, None, n, tl.cast(N, tl.int64) * C, C, 0, K)
                for k in tl.static_range(K):
                    ds = gradient(
                        k, logits, row, ls, qs, shared, c == y, slope_sums[k], upstream[k], mix,
                        K, COUNT, HAS_LABEL, UNIT, DIVERGENCE,
                    )  # fmt: skip
                    tl.store(out[k] + c, ds.to(dstudent.dtype.element_ty), mask=inside)
        block += tl.num_programs(0)

    if weights is not None:
        finish(sums, partials, counter, weights, loss, means, K, SLOTS, 128)
