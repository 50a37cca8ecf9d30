"""speculators' losses over our op: logits of a draft and of its target (1,T,V) -> (1,T) float32.

Exact: kl, rkl, jsd, tv; ce against the target's likeliest class; nla = -log(max(1 - tv, 1e-5)); lk_hybrid. Any leading
shape works. The `fused_*` names are those of `speculators.losses.fused`, which this module may stand in for.
Not offered: a gradient of the target: one that requires grad raises.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanonet.compat.rows import row_cross_entropy, row_divergence

LEAST_OVERLAP = 1e-5


def kl_div_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """KL(p, q), p = softmax(targets), q = softmax(logits)."""
    return row_divergence(logits, targets, "kl")


def reverse_kl_div_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """KL(q, p)."""
    return row_divergence(logits, targets, "reverse_kl")


def js_div_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """(KL(p, m) + KL(q, m)) / 2, m = (p + q) / 2."""
    return row_divergence(logits, targets, "js", beta=0.5)


def ce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """-log q[argmax p]."""
    return row_cross_entropy(logits, targets.argmax(-1))


def tv_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """sum |p - q| / 2."""
    return row_divergence(logits, targets, "tv")


def neg_log_acceptance_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """-log sum min(p, q)."""
    return -(1 - tv_loss(logits, targets)).clamp_min(LEAST_OVERLAP).log()


def lk_hybrid_loss(logits: Tensor, targets: Tensor, eta: float = 3.0) -> Tensor:
    """w KL(p, q) + (1 - w) tv, w = exp(-eta (1 - tv)) a constant."""
    kl, tv = kl_div_loss(logits, targets), tv_loss(logits, targets)
    weight = torch.exp(-eta * (1 - tv.detach()))
    return weight * kl + (1 - weight) * tv


fused_kl_div_loss = kl_div_loss
fused_reverse_kl_div_loss = reverse_kl_div_loss
fused_js_div_loss = js_div_loss
fused_ce_loss = ce_loss
fused_tv_loss = tv_loss
fused_nla_loss = neg_log_acceptance_loss
fused_lk_hybrid_loss = lk_hybrid_loss
