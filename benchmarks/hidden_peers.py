"""How other projects take the generalised JSD from hidden states, in our words: the mean over the rows, and the
gradients of x and weight. beta 0 is KL(p, q); else beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q.

`liger`: 1,024 rows at a time, logits and loss in the dtype of the inputs, `torch.func.grad_and_value` of each chunk.
`trl`: tiles of 4,096 x 32,768 logits in float32, made anew for each of its passes: the statistics of the rows (with the
student's entropy and both KLs), the value where beta is above 0, the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # rows
TILE = 4096, 32768  # rows, classes
Gradients = tuple[Tensor, list[Tensor]]


def liger(x: Tensor, weight: Tensor, t: Tensor, teacher_weight: Tensor, beta: float) -> Gradients:
    def loss(x: Tensor, weight: Tensor, t: Tensor) -> Tensor:
        log_q, log_p = (x @ weight.t()).log_softmax(-1), (t @ teacher_weight.t()).log_softmax(-1)
        if beta == 0:
            each = F.kl_div(log_q, log_p, reduction="none", log_target=True)
        else:
            log_m = torch.logsumexp(torch.stack([log_q + math.log(1 - beta), log_p + math.log(beta)]), dim=0)
            from_p, from_q = (F.kl_div(log_m, y, reduction="none", log_target=True) for y in (log_p, log_q))
            each = beta * from_p + (1 - beta) * from_q
        return each.sum(-1).sum() / rows

    rows, total, dx, dweight = len(x), torch.zeros((), dtype=x.dtype), [], torch.zeros_like(weight)
    for part, known in zip(x.split(CHUNK), t.split(CHUNK), strict=True):
        (one, two), value = torch.func.grad_and_value(loss, argnums=(0, 1))(part, weight, known)
        total += value
        dx.append(one)
        dweight += two
    return total, [torch.cat(dx), dweight]


def _tiles(x: Tensor, weight: Tensor, t: Tensor, teacher_weight: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The classes of a tile, and both sides' logits there."""
    room = torch.empty(2, len(x), min(TILE[1], len(weight)))
    for begin in range(0, len(weight), TILE[1]):
        classes = slice(begin, min(begin + TILE[1], len(weight)))
        s, p = room[:, :, : classes.stop - begin]
        torch.mm(x.float(), weight[classes].float().t(), out=s)
        torch.mm(t.float(), teacher_weight[classes].float().t(), out=p)
        yield classes, s, p


def _statistics(tiles: Iterator[tuple[slice, Tensor, Tensor]], rows: int) -> tuple[Tensor, ...]:
    """log Z of both sides, KL(p, q), and the student's sum of z e^z: (rows,)."""
    tops = torch.full((2, rows), -math.inf)
    sums, of_z, gaps = torch.zeros(2, rows), torch.zeros(rows), torch.zeros(2, rows)
    for _, s, p in tiles:
        gap = p - s
        for side, z in enumerate((s, p)):
            top = torch.maximum(tops[side], z.amax(-1))
            shrink, e = torch.exp(tops[side] - top), torch.exp(z - top[:, None])
            sums[side] = sums[side] * shrink + e.sum(-1)
            if side == 0:
                of_z = of_z * shrink + (e * z).sum(-1)
            gaps[side] = gaps[side] * shrink + (e * gap).sum(-1)
            tops[side] = top
    log_zs, log_zt = tops + sums.log()
    return log_zs, log_zt, gaps[1] / sums[1] - log_zt + log_zs, log_zs - of_z / sums[0]


def _log_mixture(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(log_q + math.log(1 - beta), log_p + math.log(beta))


def trl(x: Tensor, weight: Tensor, t: Tensor, teacher_weight: Tensor, beta: float) -> Gradients:
    total, dx, dweight = torch.zeros(()), torch.zeros(x.shape), torch.zeros(weight.shape)
    for begin in range(0, len(x), TILE[0]):
        part, known = (y[begin : begin + TILE[0]] for y in (x, t))
        given = part, weight, known, teacher_weight
        log_zs, log_zt, value, _ = _statistics(_tiles(*given), len(part))
        from_q = torch.zeros(len(part))
        if beta > 0:
            value = torch.zeros(len(part))
            for _, s, p in _tiles(*given):
                log_q, log_p = s - log_zs[:, None], p - log_zt[:, None]
                log_m = _log_mixture(log_q, log_p, beta)
                each = log_q.exp() * (log_q - log_m)
                value += (beta * log_p.exp() * (log_p - log_m) + (1 - beta) * each).sum(-1)
                from_q += each.sum(-1)
        total += value.sum()
        for classes, s, p in _tiles(*given):
            log_q, log_p = s - log_zs[:, None], p - log_zt[:, None]
            q = log_q.exp()
            if beta == 0:
                slope = q - log_p.exp()
            else:
                slope = (1 - beta) * q * (log_q - _log_mixture(log_q, log_p, beta) - from_q[:, None])
            low = (slope / len(x)).to(x.dtype)
            dx[begin : begin + TILE[0]].addmm_(low.float(), weight[classes].float())
            dweight[classes].addmm_(low.t().float(), part.float())
    return total / len(x), [dx.to(x.dtype), dweight.to(weight.dtype)]
