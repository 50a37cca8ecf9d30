"""The two calls that every file here makes, for logits (...,C): D of each row, and the sum of D over a denominator."""

from __future__ import annotations

import torch
from torch import Tensor

from nanonet.ops import distill_loss, distill_terms


def row_divergence(logits: Tensor, teacher: Tensor, divergence: str, beta: float | None = None) -> Tensor:
    """D(teacher, student) of each row: (...,C), (...,C) -> (...) float32, float64 for float64 logits."""
    terms = distill_terms(logits[None].flatten(1, -2), teacher.flatten(0, -2), divergence=divergence, beta=beta)
    return terms[1, 0].view(logits.shape[:-1])


def row_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(logits)[label] of each row: (...,C), (...) -> (...)."""
    return distill_terms(logits[None].flatten(1, -2), label=label.flatten())[0, 0].view(label.shape)


def mean_divergence(
    logits: Tensor,
    teacher: Tensor,
    denominator: Tensor | float,
    *,
    row_weight: Tensor | None = None,
    temperature: float = 1.0,
    divergence: str = "kl",
    beta: float | None = None,
) -> Tensor:
    """sum_n r_n D(p_n, q_n) / denominator, without tau^2: loss and gradient in one pass. A denominator of 0 gives 0.

    logits, teacher: (...,C); row_weight r: (...), bool or floating; a row of weight 0 is masked, whatever it holds.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    denominators = torch.as_tensor(denominator, dtype=dtype, device=logits.device).reshape(1).repeat(2)
    loss, _ = distill_loss(
        logits[None].flatten(1, -2),
        teacher.flatten(0, -2),
        weights=(0.0, temperature**-2, 0.0),
        row_weight=None if row_weight is None else row_weight.flatten().to(dtype),
        denominators=denominators,
        temperature=temperature,
        divergence=divergence,
        beta=beta,
    )
    return loss
