"""torchtune's distillation losses over our op, on logits (...,C) or lists of chunks of them.

Exact: what torchtune calls forward KL is the cross-entropy -sum p log q, and its symmetric loss is
ratio * cross-entropy + (1 - ratio) * KL(q, p); rows whose label is `ignore_index` do not count; where none counts the
loss is 0, with a gradient of 0. Chunks may have any sizes; each gets its own gradient.
Not offered: a class at -inf for one side alone, which torchtune leaves out of the sum, makes the loss infinite here.
`apply_compile_strategy` has nothing to compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanonet.compat.rows import mean_divergence


class ForwardKLLoss(nn.Module):
    """sum over the rows that count of -sum p log q, over their number if `normalize`."""

    name = "cross_entropy"

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def over(self, student: Tensor, teacher: Tensor, labels: Tensor, denominator: Tensor | int) -> Tensor:
        counted = labels != self.ignore_index
        return mean_divergence(student, teacher, denominator, row_weight=counted, divergence=self.name)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, normalize: bool = True) -> Tensor:
        denominator = (labels != self.ignore_index).sum() if normalize else 1
        return self.over(student_logits, teacher_logits, labels, denominator)


class ReverseKLLoss(ForwardKLLoss):
    """As ForwardKLLoss, of KL(q, p)."""

    name = "reverse_kl"


class SymmetricKLLoss(ForwardKLLoss):
    """As ForwardKLLoss, of ratio * cross-entropy + (1 - ratio) * KL(q, p)."""

    def __init__(self, sym_kd_ratio: float = 0.5, ignore_index: int = -100) -> None:
        super().__init__(ignore_index)
        if not 0 <= sym_kd_ratio <= 1:
            raise ValueError(f"sym_kd_ratio: expected a number in the range [0, 1], got {sym_kd_ratio}")
        self.sym_kd_ratio = sym_kd_ratio

    def over(self, student: Tensor, teacher: Tensor, labels: Tensor, denominator: Tensor | int) -> Tensor:
        ratio, counted = self.sym_kd_ratio, labels != self.ignore_index
        options: dict[str, Any] = {"row_weight": counted, "divergence": "symmetric_kl", "beta": ratio}
        loss = mean_divergence(student, teacher, denominator, **options)
        if ratio == 0:
            return loss
        with torch.no_grad():  # the entropy of p: what symmetric_kl lacks of the cross-entropy
            entropy = super().over(teacher, teacher, labels, denominator)
        return loss + ratio * entropy


class ForwardKLWithChunkedOutputLoss(nn.Module):
    """As ForwardKLLoss, of lists of chunks (B,t,C) of the tokens, at most `num_output_chunks`; labels (B,T)."""

    def __init__(self, num_output_chunks: int = 8, ignore_index: int = -100) -> None:
        super().__init__()
        self.num_output_chunks, self.ignore_index = num_output_chunks, ignore_index
        self.loss = ForwardKLLoss(ignore_index)

    def apply_compile_strategy(self, *args: Any, **kwargs: Any) -> ForwardKLWithChunkedOutputLoss:
        return self

    def forward(self, student_logits: Sequence[Tensor], teacher_logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        if not len(student_logits) == len(teacher_logits) <= self.num_output_chunks:
            came = f"{len(student_logits)} of the student and {len(teacher_logits)} of the teacher"
            raise ValueError(f"expected as many chunks of both, at most {self.num_output_chunks}, got {came}")
        total = (labels != self.ignore_index).sum()
        parts = labels.split([chunk.shape[1] for chunk in student_logits], dim=1)
        chunks = zip(student_logits, teacher_logits, parts, strict=True)
        return torch.stack([self.loss.over(*chunk, total) for chunk in chunks]).sum()


class ReverseKLWithChunkedOutputLoss(ForwardKLWithChunkedOutputLoss):
    """The same of ReverseKLLoss."""

    def __init__(self, num_output_chunks: int = 8, ignore_index: int = -100) -> None:
        super().__init__(num_output_chunks, ignore_index)
        self.loss = ReverseKLLoss(ignore_index)


class SymmetricKLWithChunkedOutputLoss(ForwardKLWithChunkedOutputLoss):
    """The same of SymmetricKLLoss."""

    def __init__(self, num_output_chunks: int = 8, sym_kd_ratio: float = 0.5, ignore_index: int = -100) -> None:
        super().__init__(num_output_chunks, ignore_index)
        self.loss = SymmetricKLLoss(sym_kd_ratio, ignore_index)
        self.sym_kd_ratio = sym_kd_ratio
