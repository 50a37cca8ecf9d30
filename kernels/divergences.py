"""What a divergence is, once for the Triton kernels: two functions of each class, as in nanonet/reference.py.

    D(p, q) = sum value         dD / d(s/tau) = g - q sum g, g = slope = q dD/dq

p is the teacher's probability, q the student's, l_p and l_q their natural logarithms, mix what `mix_of` gives. The
values of the KL family contain a multiple of q - p. Its sum over the classes is 0, but it cancels the error of the
log-sum-exps, which to first order is all that is left of a divergence where p and q nearly agree.
"""

from ctypes import c_float

import triton
import triton.language as tl

from nanonet.reference import DIVERGENCES, Divergence

LOG2_E = tl.constexpr(1.4426950408889634)
KL = tl.constexpr(int(Divergence.KL))
REVERSE_KL = tl.constexpr(int(Divergence.REVERSE_KL))
JS = tl.constexpr(int(Divergence.JS))
MSE = tl.constexpr(int(Divergence.MSE))
SYMMETRIC_KL = tl.constexpr(int(Divergence.SYMMETRIC_KL))
SKEW_KL = tl.constexpr(int(Divergence.SKEW_KL))
SKEW_REVERSE_KL = tl.constexpr(int(Divergence.SKEW_REVERSE_KL))
TV = tl.constexpr(int(Divergence.TV))
CROSS_ENTROPY = tl.constexpr(int(Divergence.CROSS_ENTROPY))


def check_divergence(divergence: int) -> None:
    if divergence not in DIVERGENCES.values():
        raise ValueError(f"divergence: no number {divergence}")


def mix_of(beta: float) -> tuple[float, float, float]:
    """beta and 1 - beta, and what their float32 roundings lack of a sum of 1: to the logarithm of a mixture this is an
    error in one direction, larger than a divergence where p and q nearly agree."""
    rest = 1 - beta
    return beta, rest, 1 - (c_float(beta).value + c_float(rest).value)


def has_slope_sum(divergence: int) -> bool:
    """Whether the gradient takes sum g from a sweep of its own: it is -1 for kl and cross_entropy, none for mse."""
    return divergence not in (Divergence.KL, Divergence.CROSS_ENTROPY, Divergence.MSE)


def has_mixture(divergence: int) -> bool:
    return divergence in (Divergence.JS, Divergence.SKEW_KL, Divergence.SKEW_REVERSE_KL)


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2_E)


@triton.jit
def times(p, value):
    """p value, where 0 * (-inf) and 0 * nan are 0."""
    return tl.where(p == 0, 0.0, p * value)


@triton.jit
def log_mixture(l_p, l_q, mix):
    """log(beta p + (1 - beta) q)"""
    beta, rest, rounding = mix
    p_larger = l_p > l_q
    ratio = exp(-tl.abs(l_p - l_q))
    u = tl.where(p_larger, beta, rest) + tl.where(p_larger, rest, beta) * ratio
    return tl.maximum(l_p, l_q) + (tl.log(u) + rounding)


@triton.jit
def value(l_p, l_q, p, q, mix, DIVERGENCE: tl.constexpr):
    """What each class adds to D(p, q), of every divergence but mse."""
    beta, rest, _ = mix
    if DIVERGENCE == KL:
        return times(p, l_p - l_q) + (q - p)
    elif DIVERGENCE == REVERSE_KL:
        return times(q, l_q - l_p) + (p - q)
    elif DIVERGENCE == JS:  # beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q; its differences cancel
        l_m = log_mixture(l_p, l_q, mix)
        return beta * times(p, l_p - l_m) + rest * times(q, l_q - l_m)
    elif DIVERGENCE == SYMMETRIC_KL:  # beta KL(p, q) + (1 - beta) KL(q, p)
        return beta * times(p, l_p - l_q) + rest * times(q, l_q - l_p) + (beta - rest) * (q - p)
    elif DIVERGENCE == SKEW_KL:  # KL(p, beta p + (1 - beta) q)
        return times(p, l_p - log_mixture(l_p, l_q, mix)) + rest * (q - p)
    elif DIVERGENCE == SKEW_REVERSE_KL:  # KL(q, beta q + (1 - beta) p)
        return times(q, l_q - log_mixture(l_q, l_p, mix)) + rest * (p - q)
    elif DIVERGENCE == TV:  # sum |p - q| / 2
        return 0.5 * tl.abs(p - q)
    else:  # -sum p log q
        tl.static_assert(DIVERGENCE == CROSS_ENTROPY)
        return -times(p, l_q)


@triton.jit
def slope(l_p, l_q, p, q, mix, DIVERGENCE: tl.constexpr):
    """g = q dD/dq of each class, of every divergence but mse."""
    beta, rest, _ = mix
    if DIVERGENCE == REVERSE_KL:
        return times(q, l_q - l_p)
    elif DIVERGENCE == JS:
        return rest * times(q, l_q - log_mixture(l_p, l_q, mix))
    elif DIVERGENCE == SYMMETRIC_KL:
        return rest * times(q, l_q - l_p) - beta * p
    elif DIVERGENCE == SKEW_KL:  # -(1 - beta) p q / m
        return -rest * times(q, exp(l_p - log_mixture(l_p, l_q, mix)))
    elif DIVERGENCE == SKEW_REVERSE_KL:  # q (log q - log m - beta q / m)
        l_r = l_q - log_mixture(l_q, l_p, mix)
        return times(q, l_r - beta * exp(l_r))
    elif DIVERGENCE == TV:
        return q * ((q > p).to(tl.float32) - (q < p).to(tl.float32)) * 0.5
    else:
        tl.static_assert(DIVERGENCE == KL or DIVERGENCE == CROSS_ENTROPY)
        return -p


@triton.jit
def teacher_value(s, t, l_p, l_q, p, q, mix, DIVERGENCE: tl.constexpr):
    """What each class adds to the teacher's term; for mse that of the logits s and t, times the classes."""
    if DIVERGENCE == MSE:
        return (s - t) * (s - t)
    else:
        return value(l_p, l_q, p, q, mix, DIVERGENCE)


@triton.jit
def teacher_gradient(s, t, l_p, l_q, p, q, slope_sum, mix, DIVERGENCE: tl.constexpr):
    """Its gradient with respect to s / tau; with respect to s for mse, but for the factor 2 / C."""
    if DIVERGENCE == MSE:
        return s - t
    elif DIVERGENCE == KL or DIVERGENCE == CROSS_ENTROPY:
        return q - p
    else:
        return slope(l_p, l_q, p, q, mix, DIVERGENCE) - times(q, slope_sum)
