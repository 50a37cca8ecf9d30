"""The ops of the loss in torch: fakes, backwards, registration, in that order; schemas.py says what crosses.

A backend only implements `nanonet::distill_*` for its dispatch key; the reference serves every key that no backend has.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanonet import eager
from nanonet.schemas import SCHEMAS

_LIBRARY = torch.library.Library("nanonet", "FRAGMENT")


def _statistic(student: Tensor, *shape: int) -> Tensor:
    return student.new_empty(shape, dtype=torch.float64 if student.dtype == torch.float64 else torch.float32)


def _terms_fake(student, teacher, label, temperature, divergence, beta):
    dims = eager.leading_dims(student, teacher, label)
    stacked = student.dim() - 1 - dims
    K, leading = student.shape[0] if stacked else 1, student.shape[stacked:-1]
    return _statistic(student, 3, K, *leading), _statistic(student, K + 1, math.prod(leading), 4)


def _terms_each_fake(student, teacher, label, temperature, divergence, beta):
    K, leading = len(student), student[0].shape[:-1]
    return _statistic(student[0], 3, K, *leading), _statistic(student[0], K + 1, math.prod(leading), 4)


def _terms_backward_fake(dterms, student, teacher, label, stats, temperature, divergence, beta):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _terms_each_backward_fake(dterms, student, *others):
    return student[0].new_empty(len(student), *student[0].shape)


def _loss_fake(student, teacher, label, *others):
    dims = eager.leading_dims(student, teacher, label)
    K = student.shape[0] if student.dim() - 1 != dims else 1
    dstudent = torch.empty_like(student, memory_format=torch.contiguous_format) if others[-1] else student.new_empty(0)
    return _statistic(student), _statistic(student, 3, K), dstudent


def _loss_each_fake(student, *others):
    dstudent = student[0].new_empty((len(student), *student[0].shape) if others[-1] else 0)
    return _statistic(student[0]), _statistic(student[0], 3, len(student)), dstudent


def _loss_into_fake(dstudent, student, teacher, label, *others):
    return _loss_fake(student, teacher, label, False)[:2]


def _scale_fake(dstudent, dloss):
    return None


def _refuse_second_derivative(name: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name} has no second derivative: call backward without create_graph=True")


class DistillTerms(torch.autograd.Function):
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
        dstudent = torch.ops.nanonet.distill_terms_backward(dterms, *ctx.saved_tensors, *ctx.options)
        return dstudent, None, None, None, None, None


class DistillTermsEach(torch.autograd.Function):
    """Of separate students, which come last: autograd looks for tensors in no list."""

    @staticmethod
    def forward(ctx, teacher, label, temperature, divergence, beta, *student):
        with torch._C._AutoDispatchBelowAutograd():
            terms, stats = torch.ops.nanonet.distill_terms_each.default(
                student, teacher, label, temperature, divergence, beta
            )
        ctx.save_for_backward(teacher, label, stats, *student)
        ctx.options = temperature, divergence, beta
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return terms, stats

    @staticmethod
    def backward(ctx, dterms, _):
        _refuse_second_derivative("distill_terms")
        teacher, label, stats, *student = ctx.saved_tensors
        if dterms is None:
            return (None,) * (5 + len(student))
        op = torch.ops.nanonet.distill_terms_each_backward
        return *[None] * 5, *op(dterms, student, teacher, label, stats, *ctx.options).unbind()


class DistillLoss(torch.autograd.Function):
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
        return None if dloss is None else _scaled(ctx.saved_tensors[0], dloss), *[None] * 9


class DistillLossUntraced(torch.autograd.Function):
    """DistillLoss without the gradient among its outputs: of few classes that costs as much as the kernel."""

    @staticmethod
    def forward(ctx, student, *others):
        with torch._C._AutoDispatchBelowAutograd():
            loss, means, dstudent = torch.ops.nanonet.distill_loss.default(student, *others)
        ctx.save_for_backward(dstudent)
        ctx.mark_non_differentiable(means)
        ctx.set_materialize_grads(False)
        return loss, means

    @staticmethod
    def backward(ctx, dloss, _means):
        _refuse_second_derivative("distill_loss")
        dstudent = None if dloss is None else _scaled(ctx.saved_tensors[0], dloss)
        return dstudent, None, None, None, None, None, None, None, None, None


class DistillLossEach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, others, *student):
        with torch._C._AutoDispatchBelowAutograd():
            loss, means, dstudent = torch.ops.nanonet.distill_loss_each.default(student, *others)
        ctx.save_for_backward(dstudent)
        ctx.students = len(student)
        ctx.mark_non_differentiable(means, dstudent)
        ctx.set_materialize_grads(False)
        return loss, means, dstudent

    @staticmethod
    def backward(ctx, dloss, _means, _dstudent):
        _refuse_second_derivative("distill_loss")
        if dloss is None:
            return (None,) * (1 + ctx.students)
        return None, *_scaled(ctx.saved_tensors[0], dloss).unbind()


def _scaled(dstudent: Tensor, dloss: Tensor) -> Tensor:
    """The buffer of the forward is handed out, scaled where it lies, unless somebody could still see it."""
    if (
        type(dstudent) is not Tensor
        or torch._C._autograd._get_current_graph_task_keep_graph()
        or torch._C._functorch.is_legacy_batchedtensor(dloss)  # of is_grads_batched
    ):
        return (dstudent * dloss).to(dstudent.dtype)
    torch.ops.nanonet.distill_scale_.default(dstudent, dloss)
    return dstudent


# For torch.func.grad, which wants forward and setup_context apart: slower, so used under its transforms only.
class _Func(torch.autograd.Function):
    @staticmethod
    def vmap(info, in_dims, *arguments):
        raise RuntimeError("the loss does not work under torch.func.vmap: give it the rows as leading dimensions")


class TermsFunc(_Func):
    @staticmethod
    def forward(*arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.nanonet.distill_terms.default(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3], output[1])
        ctx.options = inputs[3:]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, dterms, _):
        dstudent = torch.ops.nanonet.distill_terms_backward(dterms, *ctx.saved_tensors, *ctx.options)
        return FirstDerivative.apply(dstudent, dterms, ctx.saved_tensors[0]), *[None] * 5


class LossFunc(_Func):
    @staticmethod
    def forward(*arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.nanonet.distill_loss.default(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output[2], inputs[0])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx, dloss, *_):
        dstudent, student = ctx.saved_tensors
        return FirstDerivative.apply((dstudent * dloss).to(dstudent.dtype), dloss, student), *[None] * 9


class FirstDerivative(_Func):
    """A gradient, of what it depends on: torch.func.grad always wants a graph of it, and this one ends there."""

    @staticmethod
    def forward(gradient, upstream, student):
        return gradient.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("distill_terms and distill_loss have no second derivative")


FUNC = {"distill_terms": TermsFunc.apply, "distill_loss": LossFunc.apply}
AUTOGRAD = {
    "distill_terms": DistillTerms.apply,
    "distill_terms_each": lambda student, *others: DistillTermsEach.apply(*others, *student),
    "distill_loss": DistillLoss.apply,
    "distill_loss_each": lambda student, *others: DistillLossEach.apply(others, *student),
}
EAGER = {**AUTOGRAD, "distill_loss": DistillLossUntraced.apply}


def _loss_into_reference(dstudent, *arguments):
    loss, means, gradient = torch.ops.nanonet.distill_loss.default(*arguments, True)
    dstudent.copy_(gradient)
    return loss, means


def _register(name: str, kernel, fake, autograd=None) -> None:
    _LIBRARY.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"nanonet::{name}", fake, lib=_LIBRARY)
    if autograd is not None:
        _LIBRARY.impl(name, lambda *arguments: autograd(*arguments), "Autograd")


_register("distill_terms", eager.distill_terms, _terms_fake, AUTOGRAD["distill_terms"])
_register("distill_terms_each", eager.distill_terms_each, _terms_each_fake, AUTOGRAD["distill_terms_each"])
_register("distill_terms_backward", eager.distill_terms_backward, _terms_backward_fake)
_register("distill_terms_each_backward", eager.distill_terms_each_backward, _terms_each_backward_fake)
_register("distill_loss", eager.distill_loss, _loss_fake, AUTOGRAD["distill_loss"])
_register("distill_loss_each", eager.distill_loss_each, _loss_each_fake, AUTOGRAD["distill_loss_each"])
_register("distill_loss_into_", _loss_into_reference, _loss_into_fake)
_register("distill_scale_", eager.distill_scale_, _scale_fake)
