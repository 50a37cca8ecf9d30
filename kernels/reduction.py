"""From the rows to the loss: the shares of a row in the means, what is stored of it, and the sum over the programs."""

import triton
import triton.language as tl

from nanonet.kernels.rowwise import weigh

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
def totals(
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
    """d_0 and d_1 of every student: as given, or the number of labelled rows and the sum of r."""
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
def _share(counted, total):
    return tl.where(total == 0, 0.0, counted / total)


@triton.jit
def shares(row_weight, n, present, counted, hard, soft, at, stride_rn):
    """The share of row n in the means of ce and of the soft terms."""
    r = tl.load(row_weight + at + n * stride_rn, mask=present, other=0.0) if row_weight is not None else present
    return _share(counted.to(tl.float32), hard), _share(r.to(tl.float32), soft)


@triton.jit
def cross_entropy(row, y, counted, valid, top, plain):
    """-log softmax(s)[y]; 0 where unlabelled, nan where y is no class."""
    x = tl.load(row + y, mask=valid, other=0.0).to(tl.float32)
    return tl.where(valid, plain - (x - top), tl.where(counted, float("nan"), 0.0))


@triton.jit
def store_row(
    terms, stats, n, present, k, ce, teacher_term, peers_term, top, soft, plain, expected, N, K: tl.constexpr
):
    at = tl.full((), k, tl.int64) * N + n
    one = tl.full((), K, tl.int64) * N
    tl.store(terms + at, ce, mask=present)
    tl.store(terms + one + at, teacher_term, mask=present)
    tl.store(terms + 2 * one + at, peers_term, mask=present)
    store_stats(stats + at * 4, present, top, soft, plain, expected)


@triton.jit
def store_stats(at, present, top, soft, plain, expected):
    tl.store(at, top, mask=present)
    tl.store(at + 1, soft, mask=present)
    tl.store(at + 2, plain, mask=present)
    tl.store(at + 3, expected, mask=present)


@triton.jit
def finish(sums, partials, counter, weights, loss, means, K: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """Add up the programs' sums of share * term in the last program; slot i*K + k is term i of student k."""
    slot = tl.arange(0, SLOTS)
    programs = tl.num_programs(0)
    tl.store(partials + tl.program_id(0) * SLOTS + slot, sums)
    tl.debug_barrier()  # every thread's store, then one thread's release
    if tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1:
        total = tl.zeros((BLOCK, SLOTS), tl.float32)
        for start in range(0, programs, BLOCK):
            g = start + tl.arange(0, BLOCK)[:, None]
            total += tl.load(partials + g * SLOTS + slot[None, :], mask=g < programs, other=0.0, cache_modifier=".cg")
        mean = tl.sum(total, 0)
        w = tl.load(weights + slot // K, mask=slot < 3 * K, other=0.0).to(tl.float32)
        tl.store(means + slot, mean, mask=slot < 3 * K)
        tl.store(loss, tl.sum(weigh(w, mean), 0))
        tl.store(counter, 0)
