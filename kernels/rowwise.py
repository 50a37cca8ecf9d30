"""Formulas on tiles of rows, shared by the kernels of the loss.

A tile holds classes of one row or of several; `rows` are the tiles of K students and, last, of the teacher where there
is one, in a tuple: K is known when a kernel is compiled, so all of them stay in registers. Statistics are float32.
l is a log-probability at the temperature, q and p = exp(l) that of a student and of the teacher.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INF = tl.constexpr(float("inf"))
KL = tl.constexpr(0)
REVERSE_KL = tl.constexpr(1)
JS = tl.constexpr(2)
MSE = tl.constexpr(3)


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2_E)


@triton.jit
def weigh(p, value):
    """p value, where 0 * (-inf) and 0 * nan are 0."""
    return tl.where(p == 0, 0.0, p * value)


@triton.jit
def log_mixture(l_p, l_q):
    """log((p + q) / 2)"""
    return tl.maximum(l_p, l_q) + tl.log(0.5 + 0.5 * exp(-tl.abs(l_p - l_q)))


@triton.jit
def load_rows(student, teacher, n, c, inside, stride_k, stride_n, stride_t, K: tl.constexpr):
    """Classes c of row n of every student and of the teacher, float32; -inf outside. inside None: all are."""
    rows = ()
    for k in tl.static_range(K):
        at = student + tl.full((), k, tl.int64) * stride_k + n * stride_n + c
        rows = rows + (load_logits(at, inside, -INF),)
    if teacher is not None:
        rows = rows + (load_logits(teacher + n * stride_t + c, inside, -INF),)
    return rows


@triton.jit
def load_logits(at, inside, outside):
    x = tl.load(at) if inside is None else tl.load(at, mask=inside, other=outside)
    return x.to(tl.float32)


@triton.jit
def running(top, x):
    """The running maximum (L,) after tile x (L,V), and what to subtract: 0 where all is -inf so far."""
    top = tl.maximum(top, tl.max(x, 1))
    return top, tl.where(top == -INF, 0.0, top)


@triton.jit
def running_sum(total, before, base, x, inv_tau):
    """sum exp((x - base) / tau) (L,), of a sum that was taken below `before`."""
    scale = inv_tau * LOG2_E
    return total * tl.exp2((before - base) * scale) + tl.sum(tl.exp2((x - base[:, None]) * scale), 1)


@triton.jit
def merge(top, total, best, inv_tau):
    """log2 sum exp((x - best) / tau) of a whole row, from its lanes. A row of -inf alone gives nan."""
    return tl.log2(tl.sum(total * tl.exp2((top - best) * (inv_tau * LOG2_E)), 0))


@triton.jit
def natural(logs, COUNT: tl.constexpr):
    """Of logarithms to base 2."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (logs[k] * LN2,)
    return out


@triton.jit
def log_sum_exp(rows, tops, inv_tau, COUNT: tl.constexpr):
    """log sum exp((x - top) / tau) over the classes, (BLOCK_N,1), of rows that are in registers whole."""
    sums = ()
    for k in tl.static_range(COUNT):
        e = tl.exp2((rows[k] - tops[k]) * (inv_tau * LOG2_E))
        sums = sums + (tl.log(tl.sum(e, 1, keep_dims=True)),)
    return sums


@triton.jit
def soften(rows, tops, sums, inv_tau, COUNT: tl.constexpr):
    """The log-probabilities and the probabilities of every tile."""
    logs = ()
    probabilities = ()
    for k in tl.static_range(COUNT):
        l = (rows[k] - tops[k]) * inv_tau - sums[k]
        logs = logs + (l,)
        probabilities = probabilities + (exp(l),)
    return logs, probabilities


@triton.jit
def cohort(rows, ls, qs, K: tl.constexpr, DIVERGENCE: tl.constexpr):
    """What each class's peer terms share, in O(K): centre, A = sum_j q_j (l_j - centre) and Q = sum_j q_j.

    A - Q l_k subtracts like terms where the students agree, so l is centred, on the likeliest student: the mean
    would be -inf, or of another magnitude, as soon as one student rules the class out. For mse the centre is the
    mean of the logits, and A the sum of the squared distances to it.
    """
    centre = rows[0] if DIVERGENCE == MSE else ls[0]
    for k in tl.static_range(1, K):
        centre = centre + rows[k] if DIVERGENCE == MSE else tl.maximum(centre, ls[k])
    centre = centre / K if DIVERGENCE == MSE else centre
    A = tl.zeros_like(centre)
    Q = tl.zeros_like(centre)
    for k in tl.static_range(K):
        if DIVERGENCE == MSE:
            A += (rows[k] - centre) * (rows[k] - centre)
        else:
            A += weigh(qs[k], ls[k] - centre)
            Q += qs[k]
    return centre, A, Q


@triton.jit
def peers_of(x, l, q, centre, A, Q, K: tl.constexpr, DIVERGENCE: tl.constexpr):
    """sum_{j != k} of q_j (l_j - l_k) - q_j + q_k, or of (s_j - s_k)^2, per class.

    Over the classes q_k - q_j comes to nothing, but it takes the error of the log-sum-exps with it: to first order
    that is all there is left where the students agree.
    """
    if DIVERGENCE == MSE:
        return A + K * (x - centre) * (x - centre)
    return A - weigh(Q, l - centre) + (K * q - Q)


@triton.jit
def surprise(l_p, l_q, DIVERGENCE: tl.constexpr):
    """h in the gradient q (h - sum q h) of reverse_kl and js."""
    if DIVERGENCE == REVERSE_KL:
        return l_q - l_p
    return (l_q - log_mixture(l_p, l_q)) * 0.5


@triton.jit
def teacher_of(s, t, l_q, l_p, q, p, DIVERGENCE: tl.constexpr):
    """The divergence between teacher and student, per class, with the difference of p and q as in peers_of."""
    if DIVERGENCE == MSE:
        return (s - t) * (s - t)
    elif DIVERGENCE == KL:
        return weigh(p, l_p - l_q) + (q - p)
    elif DIVERGENCE == REVERSE_KL:
        return weigh(q, l_q - l_p) + (p - q)
    l_m = log_mixture(l_p, l_q)
    return 0.5 * (weigh(p, l_p - l_m) + weigh(q, l_q - l_m))


@triton.jit
def teacher_slope(s, t, l_q, l_p, q, p, expected, DIVERGENCE: tl.constexpr):
    """Its gradient with respect to s / tau (to s for mse, but for the factor 2 / C)."""
    if DIVERGENCE == MSE:
        return s - t
    elif DIVERGENCE == KL:
        return q - p
    return weigh(q, surprise(l_p, l_q, DIVERGENCE) - expected)


@triton.jit
def gradient(
    k: tl.constexpr,
    rows,  # of every student and the teacher
    ls,
    qs,
    centre,  # of the cohort, with Q its sum of probabilities
    Q,
    onehot,  # class c is the label
    top,  # of student k, with plain its log-sum-exp at temperature 1
    plain,
    expected,
    a_ce,  # upstream gradients; 0 masks, and where the label is no class a_ce is nan
    a_teacher,
    a_peers,
    K: tl.constexpr,
    HAS_LABEL: tl.constexpr,
    HAS_TEACHER: tl.constexpr,
    UNIT: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    """ds_k = a_ce (softmax(s_k) - onehot) + a_teacher slope + a_peers (K q_k - Q)"""
    ds = tl.zeros_like(rows[k])
    if HAS_LABEL:
        softmax = qs[k] if UNIT else exp(rows[k] - top - plain)
        ds += tl.where(a_ce == 0, 0.0, a_ce * (softmax - onehot.to(tl.float32)))
    if HAS_TEACHER:
        slope = teacher_slope(rows[k], rows[K], ls[k], ls[K], qs[k], qs[K], expected, DIVERGENCE)
        ds += tl.where(a_teacher == 0, 0.0, a_teacher * slope)
    if K > 1:
        apart = K * (rows[k] - centre) if DIVERGENCE == MSE else K * qs[k] - Q
        ds += tl.where(a_peers == 0, 0.0, a_peers * apart)
    return ds
