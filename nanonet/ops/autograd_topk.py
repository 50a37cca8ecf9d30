"""The ops of the loss against a TopK teacher in torch: fakes, backwards, registration, in that order."""

from __future__ import annotations

import torch
from torch import Tensor

from nanonet import eager_topk
from nanonet.ops.autograd import _refuse_second_derivative, _register, _scaled, _statistic


def _terms_fake(student, *others):
    return _statistic(student[0], 3, len(student), *student[0].shape[:-1])


def _terms_backward_fake(dterms, student, *others):
    return student[0].new_empty(len(student), *student[0].shape)


def _loss_fake(student, *others):
    dstudent = student[0].new_empty((len(student), *student[0].shape) if others[-1] else 0)
    return _statistic(student[0]), _statistic(student[0], 3, len(student)), dstudent


def _list_of(stacked, student):
    return student[0].unbind() if stacked else student


class DistillTopkTerms(torch.autograd.Function):
    """stacked: one tensor (K,...,C) of all students; else K of them, last, as autograd looks for tensors in no list."""

    @staticmethod
    def forward(ctx, stacked, teacher, options, *student):
        ids, logprobs, tail, label = teacher
        ctx.save_for_backward(ids, logprobs, label, *student)
        ctx.stacked, ctx.tail, ctx.options = stacked, tail, options
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.nanonet.distill_topk_terms.default(_list_of(stacked, student), *teacher, *options)

    @staticmethod
    def backward(ctx, dterms):
        _refuse_second_derivative("distill_terms")
        ids, logprobs, label, *student = ctx.saved_tensors
        if dterms is None:
            return (None,) * (3 + len(student))
        dstudent = torch.ops.nanonet.distill_topk_terms_backward(
            dterms, _list_of(ctx.stacked, student), ids, logprobs, ctx.tail, label, *ctx.options
        )
        return None, None, None, *([dstudent] if ctx.stacked else dstudent.unbind())


class DistillTopkLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, stacked, others, *student):
        with torch._C._AutoDispatchBelowAutograd():
            loss, means, dstudent = torch.ops.nanonet.distill_topk_loss.default(_list_of(stacked, student), *others)
        ctx.save_for_backward(dstudent)
        ctx.stacked, ctx.students = stacked, len(student)
        ctx.mark_non_differentiable(means, dstudent)
        ctx.set_materialize_grads(False)
        return loss, means, dstudent

    @staticmethod
    def backward(ctx, dloss, _means, _dstudent):
        _refuse_second_derivative("distill_loss")
        if dloss is None:
            return (None,) * (2 + ctx.students)
        dstudent = _scaled(ctx.saved_tensors[0], dloss)
        return None, None, *([dstudent] if ctx.stacked else dstudent.unbind())


def topk_terms(student: Tensor | list[Tensor], ids, logprobs, tail, label, *options):
    """terms (3,K,...) of K students, or of one tensor (K,...,C) of all, whose gradient is one tensor too."""
    teacher = (ids, logprobs, tail, label)
    if torch.compiler.is_compiling():
        return torch.ops.nanonet.distill_topk_terms(list(student), *teacher, *options)
    stacked = isinstance(student, Tensor)
    return DistillTopkTerms.apply(stacked, teacher, options, *([student] if stacked else student))


def topk_loss(student: Tensor | list[Tensor], *others):
    """loss, means and the gradient of K students, given as to `topk_terms`."""
    if torch.compiler.is_compiling():
        return torch.ops.nanonet.distill_topk_loss(list(student), *others)
    stacked = isinstance(student, Tensor)
    return DistillTopkLoss.apply(stacked, others, *([student] if stacked else student))


def _terms_autograd(student, ids, logprobs, tail, label, *options):
    return DistillTopkTerms.apply(False, (ids, logprobs, tail, label), options, *student)


def _loss_autograd(student, *others):
    return DistillTopkLoss.apply(False, others, *student)


_register("distill_topk_terms", eager_topk.distill_topk_terms, _terms_fake, _terms_autograd)
_register("distill_topk_terms_backward", eager_topk.distill_topk_terms_backward, _terms_backward_fake)
_register("distill_topk_loss", eager_topk.distill_topk_loss, _loss_fake, _loss_autograd)
