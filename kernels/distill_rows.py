"""The loss of rows that fit in registers, K students and the teacher at once: everything is read once.

With `weights` it makes the loss, its means and its gradient in one launch; without, the terms and row statistics.
"""

import triton
import triton.language as tl

from nanonet.kernels.reduction import UNLABELLED, cross_entropy, finish, shares, store_row, store_stats, totals
from nanonet.kernels.rowwise import (
    JS,
    REVERSE_KL,
    cohort,
    gradient,
    load_rows,
    log_sum_exp,
    peers_of,
    soften,
    surprise,
    teacher_of,
    weigh,
)


@triton.jit
def distill_rows_kernel(
    student,  # (K,N,C), rows contiguous
    teacher,  # (N,C) or None
    label,  # (N,) or None
    weights,  # (3,), or None for the terms alone
    row_weight,  # (N,) or (K,N) or None
    denominators,  # (2,) or (2,K), or None: counted here
    terms,  # (3,K,N), with stats (K+1,N,4), where there are no weights
    stats,
    loss,  # (), with means (3,K), where there are weights
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
    K: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    UNIT: tl.constexpr,  # temperature is 1
    PER_STUDENT: tl.constexpr,  # row_weight is (K,N)
    SLOTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    HAS_TEACHER: tl.constexpr = teacher is not None
    COUNT: tl.constexpr = K + 1 if HAS_TEACHER else K
    c = tl.arange(0, BLOCK_C)[None, :]
    slot = tl.arange(0, SLOTS)
    sums = tl.zeros((SLOTS,), tl.float32)
    if weights is not None:
        hard, soft = totals(
            label, row_weight, denominators, N, stride_rk, stride_rn, stride_di, stride_dk, K, PER_STUDENT, 1024
        )
        w_ce = tl.load(weights).to(tl.float32)
        w_teacher = tl.load(weights + 1).to(tl.float32)
        w_peers = tl.load(weights + 2).to(tl.float32)

    block = tl.program_id(0)
    while block * BLOCK_N < N:
        n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
        present = n < N
        inside = present & (c < C)
        rows = load_rows(student, teacher, n, c, inside, stride_k, stride_n, stride_t, K)
        tops = ()
        for k in tl.static_range(COUNT):
            tops = tops + (tl.max(rows[k], 1, keep_dims=True),)
        softs = log_sum_exp(rows, tops, inv_tau, COUNT)
        plains = softs if UNIT else log_sum_exp(rows, tops, 1.0, COUNT)
        ls, qs = soften(rows, tops, softs, inv_tau, COUNT)
        centre, A, Q = cohort(rows, ls, qs, K, DIVERGENCE)
        y = present.to(tl.int64) * UNLABELLED
        if label is not None:
            y = tl.load(label + n, mask=present, other=UNLABELLED)
        counted = y != UNLABELLED
        valid = (y >= 0) & (y < C)
        counted = counted & present
        valid = valid & present

        for k in tl.static_range(K):
            at_k = tl.full((), k, tl.int64)
            zero = tl.zeros_like(tops[k])
            ce, teacher_term, peers_term, expected = zero, zero, zero, zero
            if label is not None:
                row = student + at_k * stride_k + n * stride_n
                ce = cross_entropy(row, y, counted, valid, tops[k], plains[k])
            if HAS_TEACHER:
                per_class = teacher_of(rows[k], rows[K], ls[k], ls[K], qs[k], qs[K], DIVERGENCE)
                teacher_term = tl.sum(tl.where(inside, per_class, 0.0), 1, keep_dims=True) * term_scale
                if DIVERGENCE == REVERSE_KL or DIVERGENCE == JS:
                    expected = tl.sum(weigh(qs[k], surprise(ls[K], ls[k], DIVERGENCE)), 1, keep_dims=True)
            if K > 1:
                per_class = peers_of(rows[k], ls[k], qs[k], centre, A, Q, K, DIVERGENCE)
                peers_term = tl.sum(tl.where(inside, per_class, 0.0), 1, keep_dims=True) * (term_scale / (K - 1))
            if weights is None:
                store_row(
                    terms, stats, n, present, k, ce, teacher_term, peers_term,
                    tops[k], softs[k], plains[k], expected, N, K,
                )  # fmt: skip
            else:
                hard_share, soft_share = shares(
                    row_weight, n, present, counted, hard[k], soft[k], at_k * stride_rk, stride_rn
                )
                sums += tl.where(slot == k, tl.sum(weigh(hard_share, ce)), 0.0)
                sums += tl.where(slot == K + k, tl.sum(weigh(soft_share, teacher_term)), 0.0)
                sums += tl.where(slot == 2 * K + k, tl.sum(weigh(soft_share, peers_term)), 0.0)
                if dstudent is not None:
                    a_ce = w_ce * hard_share
                    ds = gradient(
                        k, rows, ls, qs, centre, Q, c == y, tops[k], plains[k], expected,
                        tl.where((a_ce == 0) | valid, a_ce, float("nan")),
                        w_teacher * soft_share * slope_scale,
                        w_peers * soft_share * (slope_scale / (K - 1 if K > 1 else 1)),
                        K, label is not None, HAS_TEACHER, UNIT, DIVERGENCE,
                    )  # fmt: skip
                    at = dstudent + (at_k * N + n) * C + c
                    tl.store(at, ds.to(dstudent.dtype.element_ty), mask=inside)
        if weights is None:
            zero = tl.zeros_like(tops[0])
            at = stats + (tl.full((), K, tl.int64) * N + n) * 4
            if HAS_TEACHER:
                store_stats(at, present, tops[K], softs[K], plains[K], zero)
            else:
                store_stats(at, present, zero, zero, zero, zero)
        block += tl.num_programs(0)

    if weights is not None:
        finish(sums, partials, counter, weights, loss, means, K, SLOTS, 128)
