"""A teacher that is known by its k likeliest classes, in plain torch: the specification, and the fallback.

student (K,N,C), ids (N,k) of classes, -1 where a row has fewer, logprobs (N,k) the teacher's log p of them at the
temperature of the call. With S the ids of a row, p and q become distributions over S and, by `tail`, one class more:

    BUCKET        its share is 1 - sum_S p for the teacher, 1 - sum_S q for the student
    LEFT_OUT      none: D is summed over S, and neither p nor q sums to 1
    RENORMALISED  none: p and q are divided by their sums over S
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from nanonet import reference
from nanonet.reference import KL, Divergence, divergence_slope, divergence_value, log_softmax, wide


class Tail(IntEnum):
    """The numbers by which the treatment of the tail crosses into the ops."""

    LEFT_OUT = 0
    BUCKET = 1
    RENORMALISED = 2


# float32 log-probabilities tell no smaller tail; one of 0 would make reverse_kl infinite
LEAST_TAIL = 1e-7
# by how much the mass of a row may exceed 1: a float16 rounds log p = -8 by 0.002
MASS_ABOVE_1 = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def _faults(ids: Tensor, logprobs: Tensor, C: int, tail: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where a row breaks the rules, (N,) each: an id that is no class, one twice, a log p above 0, a mass above 1."""
    outside = ((ids < -1) | (ids >= C)).any(-1)
    ordered = ids.sort(-1).values
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(-1)
    known = torch.where(ids >= 0, wide(logprobs), -torch.inf)
    above = known.exp().sum(-1) > 1 + MASS_ABOVE_1[logprobs.dtype]
    return outside, twice, (known > 0).any(-1), above


MESSAGES = (
    "ids[{n}]: expected -1 (no class) or 0 <= id < {C}, got {ids}",
    "ids[{n}]: expected each class once, got {ids}",
    "logprobs[{n}]: expected log-probabilities, at most 0, got {largest:.4g}; of logits take log_softmax",
    "logprobs[{n}]: expected log-probabilities of one distribution, their mass is {mass:.4g}",
)


def check_topk(ids: Tensor, logprobs: Tensor, C: int, tail: int) -> Tensor:
    """The rows (N,) that are NaN on a device, where looking would wait for it; on the CPU they raise ValueError."""
    faults = _faults(ids, logprobs, C, tail)
    if ids.device.type == "cpu":
        for rows, message in zip(faults, MESSAGES, strict=True):
            if rows.any():
                n = int(rows.nonzero()[0])
                known = wide(logprobs[n])[ids[n] >= 0]
                shown = ids[n].tolist()[:8] + ["..."] * (ids.shape[1] > 8)
                largest = known.max().item() if known.numel() else 0.0
                mass = known.exp().sum().item()
                raise ValueError(message.format(n=n, C=C, ids=shown, largest=largest, mass=mass))
    return torch.stack(faults).any(0)


def _mark(x: Tensor, index: Tensor, values: Tensor | float) -> Tensor:
    """x (K,N,C) with values at index (N,k), where that is below C; the index C is of no class."""
    index = index.expand(len(x), *index.shape)
    wider = torch.cat([x, x.new_zeros(*x.shape[:-1], 1)], -1)
    if isinstance(values, float):
        return wider.scatter(-1, index, values)[..., :-1]
    return wider.scatter(-1, index, values.to(x.dtype))[..., :-1]


def log_classes(student: Tensor, ids: Tensor, logprobs: Tensor, tail: int, temperature: float) -> tuple[Tensor, Tensor]:
    """log p (N,k) and log q (K,N,k) of the ids, with BUCKET (N,k+1) and (K,N,k+1); -inf where a row has fewer."""
    C, present = student.shape[-1], ids >= 0
    log_p = torch.where(present, wide(logprobs).to(wide(student).dtype), -torch.inf)
    every = log_softmax(student, temperature)
    index = ids.clamp(0, C - 1).expand(len(student), *ids.shape)
    log_q = torch.where(present, every.gather(-1, index), -torch.inf)
    if tail == Tail.RENORMALISED:
        some = present.any(-1, keepdim=True)
        log_p, log_q = (torch.where(some, x - x.logsumexp(-1, keepdim=True), -torch.inf) for x in (log_p, log_q))
    if tail == Tail.BUCKET:
        rest = (1 - log_p.exp().sum(-1, keepdim=True)).clamp_min(LEAST_TAIL)
        log_rest = torch.where(present.sum(-1, keepdim=True) == C, -torch.inf, rest.log())
        others = _mark(every, torch.where(present, index[0], C), -torch.inf)
        log_p = torch.cat([log_p, log_rest], -1)
        log_q = torch.cat([log_q, others.logsumexp(-1, keepdim=True)], -1)
    return log_p, log_q


def topk_divergence(
    student: Tensor, ids: Tensor, logprobs: Tensor, tail: int, temperature: float, divergence: int, beta: float
) -> Tensor:
    """tau^2 D(p, q) over the classes of `log_classes`: (K,N)."""
    ids = ids.long()
    bad = check_topk(ids, logprobs, student.shape[-1], tail)
    log_p, log_q = log_classes(student, ids, logprobs, tail, temperature)
    value = temperature**2 * divergence_value(log_p, log_q, divergence, beta).sum(-1)
    return torch.where(bad, torch.nan, value)


def _slope(log_p: Tensor, log_q: Tensor, tail: int, divergence: int, beta: float) -> Tensor:
    """q dD/dq. `divergence_slope` leaves a multiple of q out, which has no gradient only where the q sum to 1."""
    g = divergence_slope(log_p, log_q, divergence, beta)
    multiple = {Divergence.REVERSE_KL: 1.0, Divergence.SKEW_REVERSE_KL: 1.0, Divergence.SYMMETRIC_KL: 1 - beta}
    return g + multiple.get(Divergence(divergence), 0.0) * log_q.exp() if tail == Tail.LEFT_OUT else g


def topk_slope(
    student: Tensor, ids: Tensor, logprobs: Tensor, tail: int, temperature: float, divergence: int, beta: float
) -> Tensor:
    """d topk_divergence / d student (K,N,C), with g = q dD/dq of each class and G = sum g:

    tau (g - q G) for a class of S; outside, each takes its part r = q / q_rest of what the tail gets:
    tau r (g_rest - q_rest G) with BUCKET, -tau q G with LEFT_OUT, 0 with RENORMALISED.
    """
    ids, C = ids.long(), student.shape[-1]
    bad = check_topk(ids, logprobs, C, tail)
    log_p, log_q = log_classes(student, ids, logprobs, tail, temperature)
    g = _slope(log_p, log_q, tail, divergence, beta)
    total = g.sum(-1, keepdim=True)
    own = g - reference._times(log_q.exp(), total)
    every = log_softmax(student, temperature)
    if tail == Tail.BUCKET:
        log_rest = log_q[..., -1:]
        others = torch.where(log_rest == -torch.inf, 0, (every - log_rest).exp() * own[..., -1:])
        own = own[..., :-1]
    else:
        others = -every.exp() * total if tail == Tail.LEFT_OUT else torch.zeros_like(every)
    slope = temperature * _mark(others, torch.where(ids >= 0, ids.clamp(0, C - 1), C), own)
    return torch.where(bad[:, None], torch.nan, slope)


def distill_topk_terms(
    student: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    tail: int,
    label: Tensor | None,
    temperature: float = 1.0,
    divergence: int = KL,
    beta: float = 0.5,
) -> Tensor:
    """The terms ce, teacher, peers of every student and row: (3,K,N)."""
    ce, _, peers = reference.distill_terms(student, None, label, temperature, KL).unbind()
    teacher = topk_divergence(student, ids, logprobs, tail, temperature, divergence, beta)
    return torch.stack([ce, teacher.to(ce.dtype), peers])


def topk_gradient(
    upstream: Tensor,
    student: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    tail: int,
    label: Tensor | None,
    temperature: float,
    divergence: int,
    beta: float,
) -> Tensor:
    """sum_i upstream[i] * d terms[i] / d student: (3,K,N) -> (K,N,C). An upstream of 0 masks its row."""
    gradient = reference.row_gradient(upstream, wide(student), None, label, temperature, KL)
    u = upstream[1, ..., None].to(gradient.dtype)
    slope = topk_slope(student, ids, logprobs, tail, temperature, divergence, beta)
    return (gradient + torch.where(u == 0, 0, u * slope)).to(student.dtype)


def distill_topk_loss(
    student: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    tail: int,
    label: Tensor | None,
    weights: Tensor,
    row_weight: Tensor | None,
    denominators: Tensor | None,
    temperature: float = 1.0,
    divergence: int = KL,
    beta: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (), means (3,K) and the gradient of the loss with respect to student (K,N,C)."""
    teacher = ids, logprobs, tail, label, temperature, divergence, beta
    terms = distill_topk_terms(student, *teacher)
    loss, means, upstream = reference.weigh(terms, label, weights, row_weight, denominators)
    return loss, means, topk_gradient(upstream, student, *teacher)
