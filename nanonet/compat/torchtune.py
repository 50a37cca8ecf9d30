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


def _check_ratio(sym_kd_ratio: float) -> None:
    if not 0 <= sym_kd_ratio <= 1:
        raise ValueError(f"sym_kd_ratio: expected a number in the range [0, 1], got {sym_kd_ratio}")


class ForwardKLLoss(nn.Module):
    """sum over the rows that count of -sum p log q, over their number if `normalize`."""

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def divergence(self, student: Tensor, teacher: Tensor, denominator: Tensor | float, counted: Tensor) -> Tensor:
        return mean_divergence(student, teacher, denominator, row_weight=counted, divergence="cross_entropy")

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, normalize: bool = True
    ) -> Tensor:
        counted = labels != self.ignore_index
        return self.divergence(student_logits, teacher_logits, counted.sum() if normalize else 1, counted)


class ReverseKLLoss(ForwardKLLoss):
    """As ForwardKLLoss, of KL(q, p)."""

    def divergence(self, student: Tensor, teacher: Tensor, denominator: Tensor | float, counted: Tensor) -> Tensor:
        return mean_divergence(student, teacher, denominator, row_weight=counted, divergence="reverse_kl")


class SymmetricKLLoss(ForwardKLLoss):
    """As ForwardKLLoss, of ratio * cross-entropy + (1 - ratio) * KL(q, p)."""

    def __init__(self, sym_kd_ratio: float = 0.5, ignore_index: int = -100) -> None:
        super().__init__(ignore_index)
        _check_ratio(sym_kd_ratio)
        self.sym_kd_ratio = sym_kd_ratio

    def divergence(self, student: Tensor, teacher: Tensor, denominator: Tensor | float, counted: Tensor) -> Tensor:
        ratio = self.sym_kd_ratio
        loss = mean_divergence(
            student, teacher, denominator, row_weight=counted, divergence="symmetric_kl", beta=float(ratio)
        )
        if ratio == 0:
            return loss
        # symmetric_kl lacks the entropy of p that the cross-entropy has: a constant, without a gradient
        with torch.no_grad():
            entropy = mean_divergence(teacher, teacher, denominator, row_weight=counted, divergence="cross_entropy")
        return loss + ratio * entropy


class _Chunked(nn.Module):
    """A loss over chunks (B,t,C) of the tokens, at most `num_output_chunks` of them."""

    def __init__(self, loss: ForwardKLLoss, num_output_chunks: int) -> None:
        super().__init__()
        self.loss = loss
        self.num_output_chunks, self.ignore_index = num_output_chunks, loss.ignore_index

    def apply_compile_strategy(self, *args: Any, **kwargs: Any) -> _Chunked:
        return self

    def forward(self, student_logits: Sequence[Tensor], teacher_logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        if not len(student_logits) == len(teacher_logits) <= self.num_output_chunks:
            chunks = f"{len(student_logits)} of the student and {len(teacher_logits)} of the teacher"
            raise ValueError(f"expected as many chunks of both, at most {self.num_output_chunks}, got {chunks}")
        total = (labels != self.ignore_index).sum()
        parts = labels.split([chunk.shape[1] for chunk in student_logits], dim=1)
        losses = [
            self.loss.divergence(student, teacher, total, part != self.ignore_index)
            for student, teacher, part in zip(student_logits, teacher_logits, parts, strict=True)
        ]
        return torch.stack(losses).sum()


class ForwardKLWithChunkedOutputLoss(_Chunked):
    def __init__(self, num_output_chunks: int = 8, ignore_index: int = -100) -> None:
        super().__init__(ForwardKLLoss(ignore_index), num_output_chunks)


class ReverseKLWithChunkedOutputLoss(_Chunked):
    def __init__(self, num_output_chunks: int = 8, ignore_index: int = -100) -> None:
        super().__init__(ReverseKLLoss(ignore_index), num_output_chunks)


class SymmetricKLWithChunkedOutputLoss(_Chunked):
    def __init__(self, num_output_chunks: int = 8, sym_kd_ratio: float = 0.5, ignore_index: int = -100) -> None:
        super().__init__(SymmetricKLLoss(sym_kd_ratio, ignore_index), num_output_chunks)
        self.sym_kd_ratio = sym_kd_ratio
