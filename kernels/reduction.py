"""From rows to the loss: the share of a row in the means, what is stored per row, and the sum over the programs."""

import triton
import triton.language as tl

from nanonet.kernels.divergences import times
from nanonet.kernels.rowwise import LN2

UNLABELLED = tl.constexpr(-100)


@triton.jit
def _count(label, N, BLOCK: tl.constexpr):
    """The number of labelled rows."""
    count = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, N, BLOCK):
        n = start + tl.arange(0, BLOCK)
        count += (tl.load(label + n, mask=n < N, other=UNLABELLED) != UNLABELLED).to(tl.float32)
    return tl.sum(count, 0)


@triton.jit
def _sum(r, stride, N, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, N, BLOCK):
        n = start + tl.arange(0, BLOCK)
        total += tl.load(r + n.to(tl.int64) * stride, mask=n < N, other=0.0).to(tl.float32)
    return tl.sum(total, 0)


@triton.jit
def denominators_of(
    label,
    row_weight,
    denominators,
    N,
    stride_rk,
    stride_rn,
    stride_di,
    stride_dk,
    K: tl.constexpr,
    PER_STUDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d_0 and d_1 of every student: as given, else the number of labelled rows and the sum of r."""
    hard = ()
    soft = ()
    labelled = 0.0
    weighed = N * 1.0
    if denominators is None:
        if label is not None:
            labelled = _count(label, N, BLOCK)
        if row_weight is not None and not PER_STUDENT:
            weighed = _sum(row_weight, stride_rn, N, BLOCK)
    for k in tl.static_range(K):
        if denominators is not None:
            hard = hard + (tl.load(denominators + k * stride_dk).to(tl.float32),)
            soft = soft + (tl.load(denominators + stride_di + k * stride_dk).to(tl.float32),)
        else:
            hard = hard + (labelled,)
            soft = soft + (_sum(row_weight + k * stride_rk, stride_rn, N, BLOCK) if PER_STUDENT else weighed,)
    return hard, soft


@triton.jit
def label_of(label, n, present, C):
    """The label y of row n, whether it is labelled, and whether y is a class."""
    y = present.to(tl.int64) * UNLABELLED
    if label is not None:
        y = tl.load(label + n, mask=present, other=UNLABELLED)
    return y, present & (y != UNLABELLED), present & (y >= 0) & (y < C)


@triton.jit
def _share(weight, total):
    return tl.where(total == 0, 0.0, weight / total)


@triton.jit
def shares_of(
    row_weight,
    n,
    present,
    labelled,
    totals,  # what `denominators_of` gave
    stride_rk,
    stride_rn,
    K: tl.constexpr,
    ALIKE: tl.constexpr,  # no student has a weight or a denominator of its own
):
    """The share of row n in the means of ce and of the soft terms, of every student."""
    hard, soft = totals
    shares = ()
    for k in tl.static_range(K):
        if k > 0 and ALIKE:
            shares = shares + (shares[0],)
        else:
            r = present
            if row_weight is not None:
                at = row_weight + tl.full((), k, tl.int64) * stride_rk + n * stride_rn
                r = tl.load(at, mask=present, other=0.0)
            shares = shares + ((_share(labelled.to(tl.float32), hard[k]), _share(r.to(tl.float32), soft[k])),)
    return shares


@triton.jit
def upstream_of(weights, shares, valid, slope_scale, K: tl.constexpr):
    """The gradient of the loss with respect to ce, teacher and peers of every student, with the constants of their
    slopes. That of ce is nan where the label is no class."""
    w_ce = tl.load(weights).to(tl.float32)
    w_teacher = tl.load(weights + 1).to(tl.float32)
    w_peers = tl.load(weights + 2).to(tl.float32)
    upstream = ()
    for k in tl.static_range(K):
        hard_share, soft_share = shares[k]
        a_ce = w_ce * hard_share
        a_teacher = w_teacher * soft_share * slope_scale
        a_peers = w_peers * soft_share * (slope_scale / (K - 1 if K > 1 else 1))
        upstream = upstream + ((tl.where((a_ce == 0) | valid, a_ce, float("nan")), a_teacher, a_peers),)
    return upstream


@triton.jit
def cross_entropy(row, y, labelled, valid, maximum, lse_1):
    """-log softmax(s)[y]; 0 where unlabelled, nan where y is no class."""
    x = tl.load(row + y, mask=valid, other=0.0).to(tl.float32)
    return tl.where(valid, lse_1 * LN2 - (x - maximum), tl.where(labelled, float("nan"), 0.0))


@triton.jit
def store_terms(terms, n, present, values, N, K: tl.constexpr):
    """values: ce, teacher and peers of every student."""
    for k in tl.static_range(K):
        for i in tl.static_range(3):
            tl.store(terms + tl.full((), i * K + k, tl.int64) * N + n, values[k][i], mask=present)


@triton.jit
def store_stats(out, n, present, stats, slope_sums, N, K: tl.constexpr, COUNT: tl.constexpr):
    """maximum, lse_tau, lse_1 and sum g of every student, then of the teacher (zeros without one)."""
    maxima, lse_tau, lse_1 = stats
    zero = tl.zeros_like(maxima[0])
    for r in tl.static_range(K + 1):
        at = out + (tl.full((), r, tl.int64) * N + n) * 4
        tl.store(at, maxima[r] if r < COUNT else zero, mask=present)
        tl.store(at + 1, lse_tau[r] * LN2 if r < COUNT else zero, mask=present)
        tl.store(at + 2, lse_1[r] * LN2 if r < COUNT else zero, mask=present)
        tl.store(at + 3, slope_sums[r] if r < K else zero, mask=present)


@triton.jit
def add_row(sums, slot, shares, values, K: tl.constexpr):
    """Add share * term of a row or block of rows to the sums. Slot i*K + k is term i of student k."""
    for k in tl.static_range(K):
        for i in tl.static_range(3):
            one = times(shares[k][0 if i == 0 else 1], values[k][i])
            sums += tl.where(slot == i * K + k, one if len(one.shape) == 0 else tl.sum(one), 0.0)
    return sums


@triton.jit
def finish(sums, partials, counter, weights, loss, means, K: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """The last program to finish adds up the sums of all programs."""
    slot = tl.arange(0, SLOTS)
    programs = tl.num_programs(0)
    tl.store(partials + tl.program_id(0) * SLOTS + slot, sums)
    tl.debug_barrier()  # the stores of all threads come before the release by one
    if tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1:
        total = tl.zeros((BLOCK, SLOTS), tl.float32)
        for start in range(0, programs, BLOCK):
            g = start + tl.arange(0, BLOCK)[:, None]
            total += tl.load(partials + g * SLOTS + slot[None, :], mask=g < programs, other=0.0, cache_modifier=".cg")
        mean = tl.sum(total, 0)
        w = tl.load(weights + slot // K, mask=slot < 3 * K, other=0.0).to(tl.float32)
        tl.store(means + slot, mean, mask=slot < 3 * K)
        tl.store(loss, tl.sum(times(w, mean), 0))
        tl.store(counter, 0)
