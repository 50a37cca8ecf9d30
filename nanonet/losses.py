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
    `weight_rows=True` weighs the soft terms of a row by the confidence of its teacher row. `class_weight` (C,) weighs
    the cross-entropy of a row by its label; the mean of ce is the weighted one then.

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
        class_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.full_weights = (ce_weight, teacher_weight, peers_weight)
        self.temperature, self.divergence, self.beta = temperature, divergence, beta
        self.teacher_ramp, self.peers_ramp = teacher_ramp, peers_ramp
        self.weight_rows, self.class_weight = weight_rows, class_weight

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
        weights = weights.double() if student.dtype == torch.float64 else weights
        if self.class_weight is not None and label is not None:
            hard, ce = class_weighted(student, label, self.class_weight, denominators)
            loss, means = self._loss(student, teacher, label, weights * weights.new_tensor([0, 1, 1]), denominators)
            return loss + weights[0] * hard, torch.cat([ce[None], means[1:]])
        return self._loss(student, teacher, label, weights, denominators)

    def _loss(
        self,
        student: Tensor,
        teacher: Tensor | None,
        label: Tensor | None,
        weights: Tensor,
        denominators: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return distill_loss(
            student,
            teacher,
            label,
            weights=weights,
            row_weight=self.row_weight(teacher),
            denominators=denominators,
            temperature=self.temperature,
            divergence=self.divergence,
            beta=self.beta,
        )


def class_weighted(
    student: Tensor, label: Tensor, class_weight: Tensor, denominators: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """sum_{labelled} class_weight[y] ce / d_0, summed over the students: the loss (), and of each student (K,).

    It is the divergence KL from the one-hot distribution of the label, of rows that weigh what their class does.
    Shapes: student (K,N,C), label (N,), -100 where unlabelled, class_weight (C,), denominators (2,) of `distill_loss`.
    """
    labelled = label >= 0
    known = label.clamp(min=0)
    one_hot = torch.full(student.shape[1:], -torch.inf, device=student.device).scatter(-1, known[:, None], 0.0)
    weight = torch.where(labelled, class_weight.to(student.device)[known], 0.0)
    count = labelled.sum() if denominators is None else denominators[0]
    loss, means = distill_loss(
        student,
        one_hot,
        None,
        weights=(0.0, 1.0, 0.0),
        row_weight=weight,
        denominators=torch.stack([count, count]).to(weight),
    )
    return loss, means[1]


def balanced_weight(label: Tensor, classes: int) -> Tensor:
    """N / (C n_c) of the N rows that have a label: the weights (C,) that give every class the same share of a sum.

    label: (rows,), -100 where unlabelled; a class without a row has the weight 0.
    """
    count = torch.bincount(label[label >= 0], minlength=classes).float()
    return torch.where(count > 0, count.sum() / (len(count) * count.clamp(min=1)), 0.0)


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
