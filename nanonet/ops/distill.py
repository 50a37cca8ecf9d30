"""The distillation loss of K students against one teacher and against each other.

Public function, check, schema, fake, backward, registration, in that order. A backend only implements
`nanonet::distill_*` for its dispatch key; the reference serves every key that no backend has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nanonet import eager
from nanonet.reference import DEFAULT_BETA, DIVERGENCES
from nanonet.schemas import SCHEMAS

WIDE = (torch.float32, torch.float64)
FLOATS = (*WIDE, torch.bfloat16, torch.float16)


def distill_terms(
    student: Tensor,
    teacher: Tensor | None = None,
    label: Tensor | None = None,
    *,
    temperature: float = 1.0,
    divergence: str = "kl",
    beta: float | None = None,
) -> Tensor:
    """The three terms of every student and row, for any reduction of your own.

        ce[k,n]      = -log softmax(s_k)[y]                          0 where label is -100 or None
        teacher[k,n] = tau^2 * D(softmax(t/tau), softmax(s_k/tau))   0 where teacher is None
        peers[k,n]   = tau^2 / (K-1) * sum_{j != k} KL(q_j || q_k)   0 where K is 1

    D by `divergence`: "kl", "reverse_kl", "js" (natural logarithms, nats), or "mse": the mean over the
    classes of (s_k - t)^2 on raw logits, temperature 1, for the teacher and the peers alike.
    Teacher and peers are constants: no gradient flows into them.

    Args:
        student: (K,N,C) float32, bfloat16, float16 or float64.
        teacher: (N,C) of any of those dtypes, not requiring grad, or None.
        label: (N,) int64, -100 where unlabelled, or None.
        temperature: tau > 0.
    Returns:
        (3,K,N) float32, float64 for float64 students.
    Raises:
        TypeError, ValueError: an argument of another kind, dtype, shape or device; a label outside [0,C) on the
            CPU (NaN on a GPU); a teacher that requires grad; mse with a temperature.
        RuntimeError: on a second derivative, which is not implemented.

    Error: at most twice that of the reference in the same dtype, both against float64 (tests/ops/test_distill.py).
    Source: Zhang et al. 2018 (arXiv 1706.00384), eq. 1-8, for the peers; Hinton et al. 2015 for tau^2.
    """
    _check(student, teacher, label, None, None, None, temperature)
    code, beta = _check_divergence(divergence, beta, temperature)
    if torch.compiler.is_compiling():
        return torch.ops.nanonet.distill_terms(student, teacher, label, temperature, code, beta)[0]
    return _run(_DistillTerms, student, teacher, label, temperature, code, beta)[0]


def distill_loss(
    student: Tensor,
    teacher: Tensor | None = None,
    label: Tensor | None = None,
    *,
    weights: Tensor | Sequence[float] = (1.0, 1.0, 1.0),
    row_weight: Tensor | None = None,
    denominators: Tensor | Sequence[float] | None = None,
    temperature: float = 1.0,
    divergence: str = "kl",
    beta: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of the whole cohort and, in the same pass over the rows, its gradient.

        loss = sum_k [ w_ce sum_labelled ce / d_0 + w_teacher sum_n r_n teacher / d_1 + w_peers sum_n r_n peers / d_1 ]

    with the terms of `distill_terms`. It is summed over the students, so that each is trained as though alone.

    Args:
        student: (K,N,C) float32, bfloat16, float16 or float64.
        teacher: (N,C), not requiring grad, or None (mutual learning alone).
        label: (N,) int64, -100 where unlabelled, or None.
        weights: (3,) of ce, teacher, peers; pass a tensor on the device where they change from step to step.
        row_weight: (N,) or (K,N) weight r of the soft terms of a row, ones if None. A row of weight 0 is masked:
            whatever it holds, NaN too, does not reach the loss or the gradient.
        denominators: (2,) or (2,K), d_0 and d_1; by default the number of labelled rows and the sum of r (of each
            student, where r is (K,N)). Given from outside they make several processes or accumulated
            micro-batches equal to one large batch. A denominator of 0 gives 0.
    Returns:
        loss: () float32 (float64 for float64 students), and means: (3,K), detached: the terms' means, unweighted.
    Raises:
        As `distill_terms`. Only `student` is differentiable: anything else that requires grad raises.

    Error: as `distill_terms`; the gradient is rounded once, to the student's dtype. A float16 student that wants a
    gradient is taken in float32: made before a GradScaler's factor is known, one in float16 would underflow.
    """
    weights = _as_tensor("weights", weights, student)
    denominators = None if denominators is None else _as_tensor("denominators", denominators, student)
    _check(student, teacher, label, weights, row_weight, denominators, temperature)
    code, beta = _check_divergence(divergence, beta, temperature)
    need_grad = student.requires_grad and torch.is_grad_enabled()
    if need_grad and student.dtype == torch.float16:
        student = student.float()
    arguments = (student, teacher, label, weights, row_weight, denominators, temperature, code, beta, need_grad)
    if torch.compiler.is_compiling():
        return torch.ops.nanonet.distill_loss(*arguments)[:2]
    return _run(_DistillLoss, *arguments)[:2]


def _run(function: Any, *arguments: Any) -> Any:
    try:
        return function.apply(*arguments)
    except RuntimeError as error:  # torch knows no other error of a C++ kernel, which is where labels are looked at
        if str(error).startswith("label["):
            raise ValueError(str(error)) from None
        raise


def _as_tensor(name: str, value: Tensor | Sequence[float], student: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not isinstance(student, Tensor):
        raise TypeError(f"student: expected a tensor, got {type(student).__name__}")
    try:
        numbers = tuple(map(float, value))
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a tensor or a sequence of floats, got {value!r}") from None
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    # a fake tensor must not stay for others
    if torch.compiler.is_compiling() or type(student) is not Tensor:
        return torch.tensor(numbers, dtype=dtype, device=student.device)
    return _constant(numbers, dtype, student.device)


@lru_cache(maxsize=64)
def _constant(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)


def _check(
    student: Tensor,
    teacher: Tensor | None,
    label: Tensor | None,
    weights: Tensor | None,
    row_weight: Tensor | None,
    denominators: Tensor | None,
    temperature: float,
) -> None:
    """Name the first argument that is wrong, what was expected and what came."""
    if not isinstance(student, Tensor) or student.dtype not in FLOATS:
        raise TypeError(f"student: expected a floating tensor (K,N,C), got {_kind(student)}")
    if student.dim() != 3 or student.shape[0] < 1 or student.shape[2] < 1:
        raise ValueError(f"student: expected (K,N,C) with K >= 1 and C >= 1, got {tuple(student.shape)}")
    K, N, C = student.shape
    if teacher is not None:
        _expect("teacher", teacher, FLOATS, ((N, C),), student)
    if label is not None:
        _expect("label", label, (torch.int64,), ((N,),), student)
    if weights is not None:
        _expect("weights", weights, WIDE, ((3,),), student)
    if row_weight is not None:
        _expect("row_weight", row_weight, FLOATS, ((N,), (K, N)), student)
    if denominators is not None:
        _expect("denominators", denominators, WIDE, ((2,), (2, K)), student)
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise ValueError("temperature: only student is differentiable; pass float(temperature)")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")


# a mixture that is all p or all q: (divergence, beta) -> the divergence that it is then
_LIMITS: dict[tuple[str, float], str] = {
    ("js", 0): "kl",  # after division by beta, as others define it
    ("js", 1): "reverse_kl",
    ("symmetric_kl", 0): "reverse_kl",
    ("symmetric_kl", 1): "kl",
    ("skew_kl", 0): "kl",
    ("skew_reverse_kl", 0): "reverse_kl",
}


def _check_divergence(divergence: str, beta: float | None, temperature: float) -> tuple[int, float]:
    """The divergence's number and its beta, 0 where it has none."""
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence: expected one of {', '.join(DIVERGENCES)}, got {divergence!r}")
    if divergence == "mse" and temperature != 1:
        raise ValueError(f"temperature: mse compares raw logits, so it must be 1, got {temperature}")
    if divergence not in DEFAULT_BETA:
        if beta is not None:
            raise ValueError(f"beta: {divergence} has none (of {', '.join(DEFAULT_BETA)} it is the weight), got {beta}")
        return DIVERGENCES[divergence], 0.0
    beta = DEFAULT_BETA[divergence] if beta is None else float(beta)
    if limit := _LIMITS.get((divergence, beta)):
        return DIVERGENCES[limit], 0.0
    if not 0 < beta < 1:
        raise ValueError(f"beta: expected a number from 0 to 1 for {divergence}, got {beta}")
    return DIVERGENCES[divergence], beta


def _kind(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _expect(name: str, value: Tensor, dtypes: tuple, shapes: tuple, student: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype not in dtypes:
        raise TypeError(f"{name}: expected a tensor of {', '.join(map(str, dtypes))}, got {_kind(value)}")
    if value.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(
            f"{name}: expected shape {wanted} for student {tuple(student.shape)}, got {tuple(value.shape)}"
        )
    if value.device != student.device:
        raise ValueError(f"{name}: expected on {student.device} like student, got {value.device}")
    if value.requires_grad:
        raise ValueError(f"{name}: only student is differentiable; pass {name}.detach()")


_LIBRARY = torch.library.Library("nanonet", "FRAGMENT")


def _statistic(student: Tensor, *shape: int) -> Tensor:
    return student.new_empty(shape, dtype=torch.float64 if student.dtype == torch.float64 else torch.float32)


def _terms_fake(student, teacher, label, temperature, divergence, beta):
    K, N, _ = student.shape
    return _statistic(student, 3, K, N), _statistic(student, K + 1, N, 4)


def _terms_backward_fake(dterms, student, teacher, label, stats, temperature, divergence, beta):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _loss_fake(student, teacher, label, weights, row_weight, denominators, temperature, divergence, beta, need_grad):
    dstudent = torch.empty_like(student, memory_format=torch.contiguous_format) if need_grad else student.new_empty(0)
    return _statistic(student), _statistic(student, 3, student.shape[0]), dstudent


def _loss_into_fake(dstudent, student, *arguments):
    return _statistic(student), _statistic(student, 3, student.shape[0])


def _scale_fake(dstudent, dloss):
    return None


def _refuse_second_derivative(name: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name} has no second derivative: call backward without create_graph=True")


class _DistillTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, label, temperature, divergence, beta):
        with torch._C._AutoDispatchBelowAutograd():
            terms, stats = torch.ops.nanonet.distill_terms.default(
                student, teacher, label, temperature, divergence, beta
            )
        ctx.save_for_backward(student, teacher, label, stats)
        ctx.options = temperature, divergence, beta
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return terms, stats

    @staticmethod
    def backward(ctx, dterms, _):
        _refuse_second_derivative("distill_terms")
        if dterms is None:
            return (None,) * 6
        student, teacher, label, stats = ctx.saved_tensors
        dstudent = torch.ops.nanonet.distill_terms_backward(dterms, student, teacher, label, stats, *ctx.options)
        return dstudent, *[None] * 5


class _DistillLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, *others):
        with torch._C._AutoDispatchBelowAutograd():
            loss, means, dstudent = torch.ops.nanonet.distill_loss.default(student, *others)
        ctx.save_for_backward(dstudent)
        ctx.mark_non_differentiable(means, dstudent)
        ctx.set_materialize_grads(False)
        return loss, means, dstudent

    @staticmethod
    def backward(ctx, dloss, _means, _dstudent):
        _refuse_second_derivative("distill_loss")
        if dloss is None:
            return (None,) * 10
        (dstudent,) = ctx.saved_tensors
        # The buffer is handed out, scaled where it lies, unless somebody could still see it.
        if (
            type(dstudent) is not Tensor
            or torch._C._autograd._get_current_graph_task_keep_graph()
            or torch._C._functorch.is_legacy_batchedtensor(dloss)  # of is_grads_batched
        ):
            dstudent = (dstudent * dloss).to(dstudent.dtype)
        else:
            torch.ops.nanonet.distill_scale_.default(dstudent, dloss)
        return dstudent, *[None] * 9


def _loss_into_reference(dstudent, *arguments):
    loss, means, gradient = torch.ops.nanonet.distill_loss.default(*arguments, True)
    dstudent.copy_(gradient)
    return loss, means


def _register(name: str, kernel, fake, autograd) -> None:
    _LIBRARY.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"nanonet::{name}", fake, lib=_LIBRARY)
    if autograd is not None:
        _LIBRARY.impl(name, lambda *arguments: autograd.apply(*arguments), "Autograd")


_register("distill_terms", eager.distill_terms, _terms_fake, _DistillTerms)
_register("distill_terms_backward", eager.distill_terms_backward, _terms_backward_fake, None)
_register("distill_loss", eager.distill_loss, _loss_fake, _DistillLoss)
_register("distill_loss_into_", _loss_into_reference, _loss_into_fake, None)
_register("distill_scale_", eager.distill_scale_, _scale_fake, None)
