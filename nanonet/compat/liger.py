"""Liger-Kernel's losses over our ops: of probabilities, rows (N,C) of a student and of a constant teacher; and from
hidden states the fused linear KL and JSD, and the chunked JSD with labels, which are exact.

Exact: values, and the gradient of whatever the student's `log_softmax` (`softmax` for TVD) was taken of; ignored rows;
the reductions batchmean, sum and mean. Rows are normalised once more, within the rounding of their dtype; to check that
they are normalised, they are read once more.
Not offered, all of it raises: reduction="none"; a gradient at the probabilities themselves, of a leaf or anything else
but `log_softmax`; rows that are no probabilities (on a GPU, where looking would wait for it, NaN); an eps of one's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanonet.compat.rows import mean_divergence
from nanonet.ops import distill_linear_loss

# what only moves or casts elements: a gradient passes them as it is
MOVES = ("View", "UnsafeView", "Reshape", "Slice", "Select", "Index", "Squeeze", "Unsqueeze", "Transpose", "Permute")
PASSED = {f"{name}Backward{i}" for name in (*MOVES, "ToCopy", "Clone", "Alias", "T") for i in (0, 1, 2)}
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}


def _log_rows(name: str, x: Tensor, log: bool, counted: Tensor | None = None) -> Tensor:
    """Log-probabilities of rows (N,C) of log-probabilities or probabilities; NaN or an error where they are neither."""
    if x.requires_grad:
        made_by, wanted = x.grad_fn, "LogSoftmaxBackward0" if log else "SoftmaxBackward0"
        while made_by is not None and made_by.name() in PASSED:
            made_by = made_by.next_functions[0][0]
        if made_by is None or made_by.name() != wanted:
            maker = "log_softmax" if log else "softmax"
            raise ValueError(f"{name}: a gradient at the probabilities is not offered; pass {maker}(logits, -1)")
    seen = x.detach().float() if x.dtype != torch.float64 else x.detach()
    total = (seen.exp() if log else seen).sum(-1, keepdim=True)
    good = (total - 1).abs() <= TOLERANCE[x.dtype]
    good = good if counted is None else good | ~counted[:, None]
    if x.device.type == "cpu" and not good.all():
        n = int((~good[:, 0]).nonzero()[0])
        raise ValueError(f"{name}[{n}]: expected {'log-' * log}probabilities, their sum is {total[n].item():.4g}")
    wide = x if log else x.to(seen.dtype).clamp_min(torch.finfo(seen.dtype).tiny).log()
    return wide if x.device.type == "cpu" else torch.where(good, wide, torch.nan)


def _denominator(reduction: str, like: Tensor, counted: Tensor | None) -> Tensor | int:
    rows: Tensor | int = len(like) if counted is None else counted.sum()
    sizes: dict[str, Tensor | int] = {"batchmean": rows, "sum": 1, "mean": rows * like.shape[-1]}
    if reduction not in sizes:
        raise ValueError(
            f"reduction: expected {', '.join(sizes)}, got {reduction!r}: an element a class is not offered"
        )
    return sizes[reduction]


def _reduced(divergence: str, student: Tensor, teacher: Tensor, reduction: str, counted: Tensor | None, **beta: Any):
    denominator = _denominator(reduction, student, counted)
    return mean_divergence(student, teacher, denominator, row_weight=counted, divergence=divergence, **beta)


def _check_eps(eps: float) -> None:
    if eps != 1e-10:
        raise ValueError(f"eps: nothing needs it here, 0 log 0 is 0; leave it out, got {eps}")


class LigerKLDIVLoss(nn.KLDivLoss):
    """KL(y_true, y_pred): y_pred log-probabilities, y_true probabilities, or log-probabilities with log_target."""

    def __init__(self, eps: float = 1e-10, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check_eps(eps)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        student, teacher = _log_rows("y_pred", y_pred, True), _log_rows("y_true", y_true, self.log_target)
        return _reduced("kl", student, teacher, self.reduction, None)


class LigerJSD(nn.Module):
    """The generalised JSD of log-probabilities; beta 0 is KL(p, q), 1 is KL(q, p)."""

    def __init__(self, beta: float = 0.5, ignore_index: int = -100) -> None:
        super().__init__()
        self.beta, self.ignore_index = beta, ignore_index

    def forward(self, log_q: Tensor, log_p: Tensor, shift_labels: Tensor | None = None) -> Tensor:
        counted = None if shift_labels is None else shift_labels != self.ignore_index
        student, teacher = _log_rows("log_q", log_q, True, counted), _log_rows("log_p", log_p, True, counted)
        return _reduced("js", student, teacher, "batchmean", counted, beta=self.beta).to(log_q.dtype)


class LigerTVDLoss(nn.Module):
    """sum |p - q| / 2 of probabilities, p the student's."""

    def __init__(self, reduction: str = "batchmean", ignore_index: int = -100) -> None:
        super().__init__()
        self.reduction, self.ignore_index = reduction, ignore_index

    def forward(self, p: Tensor, q: Tensor, shift_labels: Tensor | None = None) -> Tensor:
        counted = None if shift_labels is None else shift_labels != self.ignore_index
        student, teacher = _log_rows("p", p, False, counted), _log_rows("q", q, False, counted)
        return _reduced("tv", student, teacher, self.reduction, counted)


def _linear_jsd(student, teacher, labels: Tensor | None, bias, weights, beta, ignore_index, temperature):
    """Loss and means of hidden states and heads, over the rows that are not ignored."""
    dtype = torch.float64 if student[0].dtype == torch.float64 else torch.float32
    counted = None if labels is None else labels != ignore_index
    rows = torch.tensor(len(student[0])) if counted is None else counted.sum()
    hard, soft = weights
    return distill_linear_loss(
        student[0],
        student[1],
        teacher[0],
        teacher[1],
        None if counted is None or labels is None or not hard else torch.where(counted, labels, -100),
        bias=bias[0],
        teacher_bias=bias[1],
        weights=(hard, soft * temperature**-2, 0.0),
        row_weight=counted,
        denominators=rows.to(student[0].device, dtype).repeat(2),
        temperature=temperature,
        divergence="js",
        beta=beta,
    )


class LigerFusedLinearJSD(nn.Module):
    """The generalised JSD from hidden states: student_input (N,D), student_weight (V,D), teacher_input (N,E), ..."""

    def __init__(self, jsd_beta: float = 0.5, ignore_index: int = -100, temperature: float = 1.0) -> None:
        super().__init__()
        self.jsd_beta, self.ignore_index, self.temperature = jsd_beta, ignore_index, temperature

    def forward(
        self,
        student_input: Tensor,
        student_weight: Tensor,
        teacher_input: Tensor,
        teacher_weight: Tensor,
        shift_labels: Tensor | None = None,
    ) -> Tensor:
        student, teacher = (student_input, student_weight), (teacher_input, teacher_weight)
        options = (self.jsd_beta, self.ignore_index, self.temperature)
        return _linear_jsd(student, teacher, shift_labels, (None, None), (0.0, 1.0), *options)[0]


class LigerFusedLinearKLDivLoss(nn.Module):
    """KL(target, softmax(student_input student_weight^T / temperature)), target (N,V) probabilities."""

    def __init__(
        self,
        reduction: str = "batchmean",
        ignore_index: int = -100,
        temperature: float = 1.0,
        eps: float = 1e-10,
        accum_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_eps(eps)
        self.reduction, self.ignore_index, self.temperature = reduction, ignore_index, temperature

    def forward(
        self, student_input: Tensor, student_weight: Tensor, target: Tensor, shift_labels: Tensor | None = None
    ) -> Tensor:
        counted = None if shift_labels is None else shift_labels != self.ignore_index
        teacher = _log_rows("target", target, False, counted) * self.temperature
        wide = torch.float64 if student_input.dtype == torch.float64 else torch.float32
        rows = _denominator(self.reduction, target, counted)
        return distill_linear_loss(
            student_input,
            student_weight,
            teacher,
            weights=(0.0, self.temperature**-2, 0.0),
            row_weight=counted,
            denominators=torch.as_tensor(rows, dtype=wide, device=target.device).repeat(2),
            temperature=self.temperature,
        )[0]


class LigerFusedLinearCosineSimilarityLoss:
    """Not offered: the cosine of two rows of logits is no divergence of distributions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("LigerFusedLinearCosineSimilarityLoss: no divergence; take LigerFusedLinearJSDLoss")


class LigerFusedLinearJSDLoss(nn.Module):
    """weight_hard_loss * cross-entropy + weight_soft_loss * JSD from hidden states, over the rows that are not ignored.

    With return_soft_hard_loss: the loss, and both parts, detached. compiled and chunk_size change nothing here.
    """

    def __init__(
        self,
        weight_hard_loss: float = 0.5,
        weight_soft_loss: float = 0.5,
        beta: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
        compiled: bool = True,
        chunk_size: int = 1024,
        return_soft_hard_loss: bool = False,
    ) -> None:
        super().__init__()
        self.weights, self.options = (weight_hard_loss, weight_soft_loss), (beta, ignore_index, temperature)
        self.return_soft_hard_loss = return_soft_hard_loss

    def forward(
        self,
        student_input: Tensor,
        student_weight: Tensor,
        teacher_input: Tensor,
        teacher_weight: Tensor,
        true_labels: Tensor,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        student, teacher = (student_input, student_weight), (teacher_input, teacher_weight)
        bias = student_bias, teacher_bias
        loss, means = _linear_jsd(student, teacher, true_labels, bias, self.weights, *self.options)
        return (loss, means[1, 0] / self.options[2] ** 2, means[0, 0]) if self.return_soft_hard_loss else loss
