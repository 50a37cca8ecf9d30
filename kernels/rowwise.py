"""Formulas on tiles of logits, shared by the kernels of the loss.

A tile holds classes of one row or of several. `logits` is a tuple of tiles, one of each student and, last, the
teacher's if there is one: K is a constexpr, so all of them stay in registers. COUNT is their number. Statistics are
float32: `stats` is (maxima, lse_tau, lse_1), a tuple of COUNT values each, the log-sum-exps below the maximum, at the
temperature and at 1, to base 2. l is a log-probability at the temperature, q = exp(l).
"""

import triton
import triton.language as tl

from nanonet.kernels.divergences import LOG2_E, MSE, teacher_gradient, times

LN2 = tl.constexpr(0.6931471805599453)
INF = tl.constexpr(float("inf"))


@triton.jit
def logits_view(student, teacher, n, stride_k, stride_n, stride_t, K: tl.constexpr):
    """Pointers to row n of every student and, last, of the teacher."""
    view = ()
    for k in tl.static_range(K):
        view = view + (student + tl.full((), k, tl.int64) * stride_k + n * stride_n,)
    if teacher is not None:
        view = view + (teacher + n * stride_t,)
    return view


@triton.jit
def load(at, inside, outside):
    """Logits in float32; `outside` where the mask is 0. inside None: no mask."""
    x = tl.load(at) if inside is None else tl.load(at, mask=inside, other=outside)
    return x.to(tl.float32)


@triton.jit
def load_logits(view, c, inside, COUNT: tl.constexpr):
    """Classes c of every row, -inf where the mask is 0."""
    logits = ()
    for r in tl.static_range(COUNT):
        logits = logits + (load(view[r] + c, inside, -INF),)
    return logits


@triton.jit
def running_maximum(maximum, x):
    """The running maximum (L,) after tile x (L,V), and what to subtract: 0 where all is -inf so far."""
    maximum = tl.maximum(maximum, tl.max(x, 1))
    return maximum, tl.where(maximum == -INF, 0.0, maximum)


@triton.jit
def running_sum(total, before, base, x, scale):
    """sum exp2((x - base) scale) (L,), of a total that was taken below the maximum `before`."""
    return total * tl.exp2((before - base) * scale) + tl.sum(tl.exp2((x - base[:, None]) * scale), 1)


@triton.jit
def merge(maxima, totals, maximum, scale):
    """log2 sum exp2((x - maximum) scale) of a row, from its lanes. A row of -inf alone gives nan."""
    return tl.log2(tl.sum(totals * tl.exp2((maxima - maximum) * scale), 0))


@triton.jit
def repeat(x, COUNT: tl.constexpr):
    out = ()
    for _ in tl.static_range(COUNT):
        out = out + (x,)
    return out


@triton.jit
def add_tile(lanes, logits, scale, COUNT: tl.constexpr, LSE_1: tl.constexpr):
    """The lanes' maxima and sums of exponentials after one tile more of every row."""
    maxima = ()
    sums_tau = ()
    sums_1 = ()
    for r in tl.static_range(COUNT):
        maximum, base = running_maximum(lanes[0][r], logits[r])
        maxima = maxima + (maximum,)
        sums_tau = sums_tau + (running_sum(lanes[1][r], lanes[0][r], base, logits[r], scale),)
        one = running_sum(lanes[2][r], lanes[0][r], base, logits[r], LOG2_E) if LSE_1 else lanes[2][r]
        sums_1 = sums_1 + (one,)
    return maxima, sums_tau, sums_1


@triton.jit
def statistics(
    view, tile, zeros, C, scale, COUNT: tl.constexpr, LSE_1: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr
):
    """First sweep: (maxima, lse_tau, lse_1) of every row; lse_1 is lse_tau where LSE_1 does not ask for it."""
    lanes = (repeat(zeros - INF, COUNT), repeat(zeros, COUNT), repeat(zeros, COUNT))
    full = C // TILE * TILE
    for start in tl.range(0, full, TILE, num_stages=STAGES):
        lanes = add_tile(lanes, load_logits(view, start + tile, None, COUNT), scale, COUNT, LSE_1)
    for start in tl.range(full, C, TILE, num_stages=1):
        c = start + tile
        lanes = add_tile(lanes, load_logits(view, c, c < C, COUNT), scale, COUNT, LSE_1)
    maxima = ()
    lse_tau = ()
    lse_1 = ()
    for r in tl.static_range(COUNT):
        maximum = tl.max(lanes[0][r], 0)
        lse = merge(lanes[0][r], lanes[1][r], maximum, scale)
        maxima = maxima + (maximum,)
        lse_tau = lse_tau + (lse,)
        lse_1 = lse_1 + (merge(lanes[0][r], lanes[2][r], maximum, LOG2_E) if LSE_1 else lse,)
    return maxima, lse_tau, lse_1


@triton.jit
def log_sum_exp(logits, maxima, scale, COUNT: tl.constexpr):
    """log2 sum exp2((x - maximum) scale) (BLOCK_N,1) of rows that are in registers as a whole."""
    sums = ()
    for r in tl.static_range(COUNT):
        sums = sums + (tl.log2(tl.sum(tl.exp2((logits[r] - maxima[r]) * scale), 1, keep_dims=True)),)
    return sums


@triton.jit
def log_softmax(logits, stats, scale, COUNT: tl.constexpr):
    """l and q of every tile; scale is log2(e) / temperature."""
    maxima, lse_tau, _ = stats
    ls = ()
    qs = ()
    for r in tl.static_range(COUNT):
        l = (logits[r] - maxima[r]) * scale - lse_tau[r]
        ls = ls + (l * LN2,)
        qs = qs + (tl.exp2(l),)
    return ls, qs


@triton.jit
def cohort(logits, ls, qs, K: tl.constexpr, DIVERGENCE: tl.constexpr):
    """What each class's peer terms share, in O(K): centre, A = sum_j q_j (l_j - centre) and Q = sum_j q_j.

    A - Q l_k subtracts like terms where the students agree, so l is centred, on the likeliest student: the mean
    would be -inf, or of another magnitude, as soon as one student rules the class out. For mse the centre is the
    mean of the logits, and A the sum of the squared distances to it.
    """
    centre = logits[0] if DIVERGENCE == MSE else ls[0]
    for k in tl.static_range(1, K):
        centre = centre + logits[k] if DIVERGENCE == MSE else tl.maximum(centre, ls[k])
    centre = centre / K if DIVERGENCE == MSE else centre
    A = tl.zeros_like(centre)
    Q = tl.zeros_like(centre)
    for k in tl.static_range(K):
        if DIVERGENCE == MSE:
            A += (logits[k] - centre) * (logits[k] - centre)
        else:
            A += times(qs[k], ls[k] - centre)
            Q += qs[k]
    return centre, A, Q


@triton.jit
def peers_value(x, l, q, shared, K: tl.constexpr, DIVERGENCE: tl.constexpr):
    """sum_{j != k} of q_j (l_j - l_k) - q_j + q_k, or of (s_j - s_k)^2, per class; shared: what `cohort` gave.

    The sum of q_k - q_j over the classes is 0, but for the error of the log-sum-exps, as in divergences.value.
    """
    centre, A, Q = shared
    if DIVERGENCE == MSE:
        return A + K * (x - centre) * (x - centre)
    return A - times(Q, l - centre) + (K * q - Q)


@triton.jit
def gradient(
    k: tl.constexpr,
    logits,
    stats,
    ls,
    qs,
    shared,  # what `cohort` gave
    onehot,  # class c is the label
    slope_sum,  # of student k
    upstream,  # of ce, teacher, peers, with the constants of the slopes; 0 masks
    mix,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    HAS_LABEL: tl.constexpr,
    UNIT: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    """ds_k = a_ce (softmax(s_k) - onehot) + a_teacher (g - q_k sum g) + a_peers (K q_k - Q)"""
    maxima, _, lse_1 = stats
    centre, _, Q = shared
    a_ce, a_teacher, a_peers = upstream
    ds = tl.zeros_like(logits[k])
    if HAS_LABEL:
        softmax = qs[k] if UNIT else tl.exp2((logits[k] - maxima[k]) * LOG2_E - lse_1[k])
        ds += tl.where(a_ce == 0, 0.0, a_ce * (softmax - onehot.to(tl.float32)))
    if COUNT > K:
        one = teacher_gradient(logits[k], logits[K], ls[K], ls[k], qs[K], qs[k], slope_sum, mix, DIVERGENCE)
        ds += tl.where(a_teacher == 0, 0.0, a_teacher * one)
    if K > 1:
        apart = K * (logits[k] - centre) if DIVERGENCE == MSE else K * qs[k] - Q
        ds += tl.where(a_peers == 0, 0.0, a_peers * apart)
    return ds


@triton.jit
def fast_classes(logits, stats, scale, upstream, K: tl.constexpr, COUNT: tl.constexpr, LSE_1: tl.constexpr):
    """For kl and cross_entropy, without guards: log2 q and q of every row, Q = sum_j q_j, and each student's gradient
    without its one-hot."""
    maxima, lse_tau, lse_1 = stats
    ls = ()
    qs = ()
    for r in tl.static_range(COUNT):
        l = (logits[r] - maxima[r]) * scale - lse_tau[r]
        ls = ls + (l,)
        qs = qs + (tl.exp2(l),)
    Q = qs[0]
    for k in tl.static_range(1, K):
        Q += qs[k]
    ds = ()
    for k in tl.static_range(K):
        a_ce, a_teacher, a_peers = upstream[k]
        own = 0.0 if LSE_1 else a_ce
        others = 0.0
        if COUNT > K:
            own += a_teacher
            others += a_teacher * qs[K]
        if K > 1:
            own += a_peers * K
            others += a_peers * Q
        d = own * qs[k] - others
        if LSE_1:
            d += a_ce * tl.exp2((logits[k] - maxima[k]) * LOG2_E - lse_1[k])
        ds = ds + (d,)
    return ls, qs, Q, ds
