"""The loss from hidden states in torch: the op, its fake, backward and registration."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nanonet.ops.autograd import _refuse_second_derivative, _register, _scaled
from nanonet.ops.linear_check import check_call
from nanonet.ops.linear_chunks import Loss, Teacher, Transform, chunked_loss
from nanonet.ops.linear_products import Heads, product_into, project_into, widest


class Call(NamedTuple):
    """Everything but the heads."""

    teacher: Teacher
    loss: Loss
    chunk: int
    entropy: bool
    transform: Transform | None = None
    teacher_transform: Transform | None = None


def run(heads: Heads, call: Call, needs: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor, list[Tensor]]:
    # the products accumulate in float32: nothing is left to cast
    with torch.autocast(heads.hidden[0].device.type, enabled=False):
        transforms = call.transform, call.teacher_transform
        return chunked_loss(heads, call.teacher, call.loss, call.chunk, needs, call.entropy, *transforms)


def _of_schema(hidden, weight, bias, *others) -> tuple[Heads, Call, tuple[bool, bool, bool]]:
    """The arguments of the op, checked."""
    heads, teacher, loss, (chunk, entropy, needs) = (
        Heads(hidden, weight, bias),
        Teacher(*others[:6]),
        Loss(*others[6:13]),
        others[13:],
    )
    check_call(heads, teacher, loss, chunk, needs)
    return heads, Call(teacher, loss, chunk, entropy), tuple(needs)


def _by_schema(*arguments):
    with torch.no_grad():
        return run(*_of_schema(*arguments))


def _fake(hidden, weight, bias, *others):
    entropy, needs = others[-2:]
    heads = Heads(hidden, weight, bias)
    dtype = widest(*hidden, *weight)
    wanted = [t for group, needed in zip(heads, needs, strict=True) if needed for t in group]
    gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in wanted]
    return hidden[0].new_empty((), dtype=dtype), hidden[0].new_empty(3 + entropy, heads.K, dtype=dtype), gradients


class DistillLinearLoss(torch.autograd.Function):
    """tensors: those of Heads; counts: how many of each kind."""

    @staticmethod
    def forward(ctx, call, counts, needs, *tensors):
        split = counts[0], counts[0] + counts[1]
        heads = Heads(list(tensors[: split[0]]), list(tensors[split[0] : split[1]]), list(tensors[split[1] :]))
        loss, means, gradients = run(heads, call, needs)
        ctx.save_for_backward(*gradients)
        ctx.counts, ctx.needs = counts, needs
        ctx.mark_non_differentiable(means, *gradients)
        ctx.set_materialize_grads(False)
        return loss, means, *gradients

    @staticmethod
    def backward(ctx, dloss, *_):
        _refuse_second_derivative("distill_linear_loss")
        if dloss is None:
            return (None,) * (3 + sum(ctx.counts))
        saved = iter(ctx.saved_tensors)
        scaled = []
        for count, needed in zip(ctx.counts, ctx.needs, strict=True):
            scaled += [_scaled(next(saved), dloss) if needed else None for _ in range(count)]
        return None, None, None, *scaled


def apply(heads: Heads, call: Call, needs: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor, list[Tensor]]:
    counts = tuple(len(group) for group in heads)
    loss, means, *gradients = DistillLinearLoss.apply(call, counts, needs, *heads.hidden, *heads.weight, *heads.bias)
    return loss, means, gradients


def _autograd(*arguments):
    return apply(*_of_schema(*arguments))


def as_op(heads: Heads, call: Call, needs: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """One node of a compiled graph: for calls without a transform."""
    others = (*call.teacher, *call.loss, call.chunk, call.entropy, list(needs))
    return torch.ops.nanonet.distill_linear_loss(*heads, *others)


_register("project_into_", project_into, lambda logits, x, weight, bias: None)
_register("bfloat16_product_", product_into, lambda logits, x, weight: None)
_register("distill_linear_loss", _by_schema, _fake, _autograd)
