"""The distillation loss as a module: the weights of its terms over the training.

An `nn.Module` over `nanonet.distill_loss`, for any training loop.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from nanonet.ops import distill_loss


def ramp(progress: float, start: float, end: float) -> float:
    """Rise linearly from 0 at `start` to 1 at `end`; all three are fractions of the training."""
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start))


def confidence(teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """1 - H(p) / log C of teacher logits (N,C): 0 for a uniform p, 1 for a one-hot p. Returns (N,)."""
    p = torch.softmax(teacher.float() / temperature, -1)
    return 1 - torch.special.entr(p).sum(-1) / math.log(max(teacher.shape[-1], 2))


class DistillLoss(nn.Module):
    """ce_weight * CE + teacher_weight * ramp * D(teacher, student) + peers_weight * ramp * mean KL(peer, student)

    `divergence` names D, `beta` is its mixing weight (None: its default), as in `nanonet.distill_loss`.
    `teacher_ramp` and `peers_ramp` are (start, end) in fractions of the training between which the weight of that
    term rises from 0 to full. `forward` takes the arguments of `nanonet.distill_loss`, and `progress` in [0, 1].
    `weight_rows=True` weighs the soft terms of a row by the confidence of its teacher row.

    Shapes: student (K,N,C), teacher (N,C) or None, label (N,) or None; returns loss () and means (3,K), detached.
    """

    def __init__(
        self,
        ce_weight: float = 1.0,
        teacher_weight: float = 1.0,
        peers_weight: float = 0.1,
        *,
        temperature: float = 1.0,
        divergence: str = "kl",
        beta: float | None = None,
        teacher_ramp: tuple[float, float] = (0.0, 0.0),
        peers_ramp: tuple[float, float] = (0.0, 0.1),
        weight_rows: bool = False,
    ) -> None:
        super().__init__()
        self.full_weights = (ce_weight, teacher_weight, peers_weight)
        self.temperature, self.divergence, self.beta = temperature, divergence, beta
        self.teacher_ramp, self.peers_ramp = teacher_ramp, peers_ramp
        self.weight_rows = weight_rows

    def weights(self, progress: float = 1.0) -> tuple[float, float, float]:
        """The weights of ce, teacher and peers after this fraction of the training."""
        ce, teacher, peers = self.full_weights
        return ce, teacher * ramp(progress, *self.teacher_ramp), peers * ramp(progress, *self.peers_ramp)

    def row_weight(self, teacher: Tensor | None) -> Tensor | None:
        """The weight of every row's soft terms (N,), or None where all weigh the same."""
        return confidence(teacher, self.temperature) if self.weight_rows and teacher is not None else None

    def forward(
        self,
        student: Tensor,
        teacher: Tensor | None = None,
        label: Tensor | None = None,
        *,
        progress: float = 1.0,
        denominators: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        weights = torch.tensor(self.weights(progress)).to(student.device, non_blocking=True)
        return distill_loss(
            student,
            teacher,
            label,
            weights=weights.double() if student.dtype == torch.float64 else weights,
            row_weight=self.row_weight(teacher),
            denominators=denominators,
            temperature=self.temperature,
            divergence=self.divergence,
            beta=self.beta,
        )


def relation_loss(features: Tensor, embedding: Tensor) -> Tensor:
    """mean (cos_student - cos_teacher)^2 over all pairs of the N rows.

    features (K,N,D), embedding (N,E) of any width: only cosines are compared, so no projection is needed. Returns
    (K,), 0 for a single row. Source: Tung and Mori 2019 (arXiv 1907.09682), similarity-preserving distillation;
    on cosines, as in Park et al. 2019 (arXiv 1904.05068).
    """
    N = len(embedding)
    student, teacher = normalize(features.float(), dim=-1), normalize(embedding.float(), dim=-1)
    difference = student @ student.mT - teacher @ teacher.T  # 0 on the diagonal
    return difference.square().sum((1, 2)) / max(N * (N - 1), 1)
