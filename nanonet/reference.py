"""Every op once, in plain torch: the specification that each backend is judged against, and the fallback.

The ops of the loss stand here, those of the linear layer in reference_linear.py; both go by `reference.NAME`.
Any floating dtype and any device. float64 input is computed in float64, everything else in float32.
N rows, C classes, K students.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from nanonet.reference_linear import cohort_linear as cohort_linear
from nanonet.reference_linear import cohort_linear_backward as cohort_linear_backward
from nanonet.reference_linear import dropout_scale as dropout_scale
from nanonet.reference_linear import mix32 as mix32


class Divergence(IntEnum):
    """The numbers by which a divergence crosses into the ops; their names in lower case are the public ones."""

    KL = 0
    REVERSE_KL = 1
    JS = 2
    MSE = 3
    SYMMETRIC_KL = 4
    SKEW_KL = 5
    SKEW_REVERSE_KL = 6
    TV = 7
    CROSS_ENTROPY = 8


DIVERGENCES = {divergence.name.lower(): int(divergence) for divergence in Divergence}
KL, MSE = int(Divergence.KL), int(Divergence.MSE)
# the divergences that have a beta
DEFAULT_BETA = {"js": 0.5, "symmetric_kl": 0.5, "skew_kl": 0.1, "skew_reverse_kl": 0.1}
UNLABELLED = -100


def wide(x: Tensor) -> Tensor:
    """The tensor in the dtype that is computed in: float64 stays, everything else is float32."""
    return x if x.dtype == torch.float64 else x.float()


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    logits = wide(logits)
    return torch.log_softmax((logits - logits.amax(-1, keepdim=True).detach()) / temperature, -1)


def _times(p: Tensor, value: Tensor) -> Tensor:
    """p value, where 0 * (-inf) is 0."""
    return torch.where(p == 0, 0, p * value)


def _log_mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """log(beta p + (1 - beta) q)"""
    return torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))


def divergence_value(log_p: Tensor, log_q: Tensor, divergence: int, beta: float) -> Tensor:
    """What each class adds to D(p, q), of every divergence but mse."""
    p, q = log_p.exp(), log_q.exp()
    match divergence:
        case Divergence.KL:  # KL(p, q)
            return _times(p, log_p - log_q)
        case Divergence.REVERSE_KL:  # KL(q, p)
            return _times(q, log_q - log_p)
        case Divergence.JS:  # beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q
            log_m = _log_mixture(log_p, log_q, beta)
            return beta * _times(p, log_p - log_m) + (1 - beta) * _times(q, log_q - log_m)
        case Divergence.SYMMETRIC_KL:  # beta KL(p, q) + (1 - beta) KL(q, p)
            return beta * _times(p, log_p - log_q) + (1 - beta) * _times(q, log_q - log_p)
        case Divergence.SKEW_KL:  # KL(p, beta p + (1 - beta) q)
            return _times(p, log_p - _log_mixture(log_p, log_q, beta))
        case Divergence.SKEW_REVERSE_KL:  # KL(q, beta q + (1 - beta) p)
            return _times(q, log_q - _log_mixture(log_q, log_p, beta))
        case Divergence.TV:  # sum |p - q| / 2
            return (p - q).abs() / 2
        case Divergence.CROSS_ENTROPY:  # -sum p log q
            return -_times(p, log_q)
    raise ValueError(f"divergence: no number {divergence}")


def divergence_slope(log_p: Tensor, log_q: Tensor, divergence: int, beta: float) -> Tensor:
    """g = q dD/dq of each class: the gradient of D with respect to s/tau is g - q sum g. Every divergence but mse."""
    p, q = log_p.exp(), log_q.exp()
    match divergence:
        case Divergence.KL | Divergence.CROSS_ENTROPY:
            return -p
        case Divergence.REVERSE_KL:
            return _times(q, log_q - log_p)
        case Divergence.JS:
            return (1 - beta) * _times(q, log_q - _log_mixture(log_p, log_q, beta))
        case Divergence.SYMMETRIC_KL:
            return (1 - beta) * _times(q, log_q - log_p) - beta * p
        case Divergence.SKEW_KL:  # -(1 - beta) q p / m
            return -(1 - beta) * _times(q, (log_p - _log_mixture(log_p, log_q, beta)).exp())
        case Divergence.SKEW_REVERSE_KL:  # q (log q - log m - beta q / m)
            log_r = log_q - _log_mixture(log_q, log_p, beta)
            return _times(q, log_r - beta * log_r.exp())
        case Divergence.TV:
            return q * torch.sign(q - p) / 2
    raise ValueError(f"divergence: no number {divergence}")


def _check_label(label: Tensor, C: int) -> None:
    bad = (label != UNLABELLED) & ((label < 0) | (label >= C))
    if label.device.type == "cpu" and bad.any():  # on a device, looking would wait for it: NaN there
        n = int(bad.nonzero()[0])
        raise ValueError(f"label[{n}] is {int(label[n])}: expected -100 (unlabelled) or 0 <= label < {C}")


def cross_entropy(student: Tensor, label: Tensor) -> Tensor:
    """-log softmax(s_k)[y] (K,N); 0 where unlabelled, NaN where the label is no class."""
    K, N, C = student.shape
    _check_label(label, C)
    index = label.clamp(0, C - 1).expand(K, N)[..., None]
    ce = -log_softmax(student, 1.0).gather(-1, index)[..., 0]
    ce = torch.where((label >= 0) & (label < C), ce, torch.nan)
    return torch.where(label == UNLABELLED, 0, ce)


def divergence_from(teacher: Tensor, student: Tensor, temperature: float, divergence: int, beta: float) -> Tensor:
    """tau^2 D(p, q) along the last dimension, or the mean squared difference of the logits."""
    if divergence == MSE:
        return (wide(student) - wide(teacher)).square().mean(-1)
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    return temperature**2 * divergence_value(log_p, log_q, divergence, beta).sum(-1)


def distill_terms(
    student: Tensor,
    teacher: Tensor | None,
    label: Tensor | None,
    temperature: float = 1.0,
    divergence: int = KL,
    beta: float = 0.5,
) -> Tensor:
    """The terms ce, teacher, peers of every student and row: (3,K,N). The definition, pair by pair."""
    K, N, _ = student.shape
    zero = wide(student).new_zeros(K, N)
    ce = zero if label is None else cross_entropy(student, label)
    from_teacher = zero if teacher is None else divergence_from(teacher, student, temperature, divergence, beta)
    between = MSE if divergence == MSE else KL
    peers = [
        sum(
            (divergence_from(student[j].detach(), student[k], temperature, between, beta) for j in range(K) if j != k),
            zero[k],
        )
        for k in range(K)
    ]
    return torch.stack([ce, from_teacher.to(zero.dtype), torch.stack(peers) / max(K - 1, 1)])


def row_stats(
    student: Tensor, teacher: Tensor | None, temperature: float, divergence: int, beta: float = 0.5
) -> Tensor:
    """What a backward may keep of each row, (K+1,N,4): maximum; log-sum-exp below it at the temperature
    and at 1; and sum g (`divergence_slope`), 0 for mse and where it is -1 always. Row K is the teacher's."""
    rows = wide(student) if teacher is None else torch.cat([wide(student), wide(teacher)[None]])
    maximum = rows.amax(-1, keepdim=True)
    lse_tau, lse_1 = (((rows - maximum) / tau).exp().sum(-1).log() for tau in (temperature, 1.0))
    stats = rows.new_zeros(student.shape[0] + 1, student.shape[1], 4)
    stats[: rows.shape[0], :, :3] = torch.stack([maximum[..., 0], lse_tau, lse_1], -1)
    if teacher is not None and divergence not in (KL, Divergence.CROSS_ENTROPY, MSE):
        log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
        stats[:-1, :, 3] = divergence_slope(log_p, log_q, divergence, beta).sum(-1)
    return stats


def row_gradient(
    upstream: Tensor,
    student: Tensor,
    teacher: Tensor | None,
    label: Tensor | None,
    temperature: float,
    divergence: int,
    beta: float = 0.5,
) -> Tensor:
    """sum_i upstream[i] * d terms[i] / d student: (3,K,N) -> (K,N,C). An upstream of 0 masks its row."""
    K, _, C = student.shape
    u_ce, u_teacher, u_peers = (u[..., None] for u in upstream.to(wide(student).dtype))
    log_q = log_softmax(student, temperature)
    q = log_q.exp()
    gradient = torch.zeros_like(q)
    if label is not None:
        # ce: softmax(s) - onehot(y)
        onehot = torch.arange(C, device=label.device) == label[:, None]
        invalid = ((label != UNLABELLED) & ((label < 0) | (label >= C)))[:, None]
        slope = log_softmax(student, 1.0).exp() - onehot.to(q.dtype) + torch.where(invalid, torch.nan, 0.0)
        gradient += torch.where((u_ce == 0) | (label == UNLABELLED)[:, None], 0, u_ce * slope)
    if teacher is not None:
        if divergence == MSE:
            slope = (wide(student) - wide(teacher)) * (2 / C)
        else:
            log_p = log_softmax(teacher, temperature)
            g = divergence_slope(log_p, log_q, divergence, beta)
            slope = temperature * (g - _times(q, g.sum(-1, keepdim=True)))
        gradient += torch.where(u_teacher == 0, 0, u_teacher * slope)
    if K > 1:
        # peers: tau / (K-1) (K q_k - Q), the same form in the logits for mse
        x, factor = (wide(student), 2 / C) if divergence == MSE else (q, temperature)
        gradient += torch.where(u_peers == 0, 0, u_peers * (factor / (K - 1)) * (K * x - x.sum(0)))
    return gradient.to(student.dtype)


def weigh(
    terms: Tensor, label: Tensor | None, weights: Tensor, row_weight: Tensor | None, denominators: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (), means (3,K) and the gradient of the loss with respect to terms (3,K,N)."""
    soft = torch.ones_like(terms[1]) if row_weight is None else row_weight.to(terms.dtype).expand_as(terms[1])
    labelled = torch.zeros_like(soft) if label is None else (label != UNLABELLED).to(soft.dtype).expand_as(soft)
    counts = torch.stack([labelled, soft, soft])
    if denominators is None:
        totals = counts.sum(-1)
    else:
        hard, both = denominators.to(soft.dtype).reshape(2, -1)
        totals = torch.stack([hard, both, both])
    share = torch.where(totals[..., None] == 0, 0, counts / totals[..., None])
    means = torch.where(share == 0, 0, share * terms).sum(-1)
    weights = weights.to(soft.dtype)[:, None]
    loss = torch.where(weights == 0, 0, weights * means).sum()
    return loss, means, weights[..., None] * share


def distill_loss(
    student: Tensor,
    teacher: Tensor | None,
    label: Tensor | None,
    weights: Tensor,
    row_weight: Tensor | None,
    denominators: Tensor | None,
    temperature: float = 1.0,
    divergence: int = KL,
    beta: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (), means (3,K) and the gradient of the loss with respect to student (K,N,C)."""
    terms = distill_terms(student, teacher, label, temperature, divergence, beta)
    loss, means, upstream = weigh(terms, label, weights, row_weight, denominators)
    return loss, means, row_gradient(upstream, student, teacher, label, temperature, divergence, beta)
