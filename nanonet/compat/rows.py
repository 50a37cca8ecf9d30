"""The two calls that every file here makes, for logits (...,C): D of each row, and the sum of D over a denominator."""

from __future__ import annotations

import torch
from torch import Tensor

from nanonet.ops import TopK, distill_loss, distill_terms


def row_divergence(logits: Tensor, teacher: Tensor, divergence: str, beta: float | None = None) -> Tensor:
    """D(teacher, student) of each row: (...,C), (...,C) -> (...) float32, float64 for float64 logits."""
    return distill_terms(logits, teacher, divergence=divergence, beta=beta)[1, 0]


def row_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(logits)[label] of each row: (...,C), (...) -> (...)."""
    return distill_terms(logits, label=label)[0, 0]


def mean_divergence(
    logits: Tensor,
    teacher: Tensor | TopK,
    denominator: Tensor | float,
    *,
    row_weight: Tensor | None = None,
    temperature: float = 1.0,
    divergence: str = "kl",
    beta: float | None = None,
) -> Tensor:
    """sum_n r_n D(p_n, q_n) / denominator, without tau^2: loss and gradient in one pass. A denominator of 0 gives 0.

    logits (...,C), teacher (...,C) or a TopK; row_weight r: (...), or as many elements. A row of weight 0 is masked,
    whatever it holds.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss, _ = distill_loss(
        logits,
        teacher,
        weights=(0.0, temperature**-2, 0.0),
        row_weight=None if row_weight is None else row_weight.reshape(logits.shape[:-1]),
        denominators=torch.as_tensor(denominator, dtype=dtype, device=logits.device).reshape(1).repeat(2),
        temperature=temperature,
        divergence=divergence,
        beta=beta,
    )
    return loss
