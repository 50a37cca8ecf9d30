"""The distillation loss from hidden states: the logits never exist whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanonet.ops import autograd_linear
from nanonet.ops.check import FLOATS, LABELS, as_tensor, check_divergence, check_logits, check_weights, expect, kind_of
from nanonet.ops.linear_check import check_heads, shapes_of
from nanonet.ops.linear_chunks import Loss, Teacher, Transform
from nanonet.ops.linear_products import Heads, chunk_rows
from nanonet.ops.topk import TAILS, TopK
from nanonet.reference import UNLABELLED

Each = Tensor | Sequence[Tensor]


def distill_linear_loss(
    hidden: Each,
    weight: Each,
    teacher_hidden: Tensor | TopK | None = None,
    teacher_weight: Tensor | None = None,
    label: Tensor | None = None,
    *,
    bias: Each | None = None,
    teacher_bias: Tensor | None = None,
    transform: Transform | None = None,
    teacher_transform: Transform | None = None,
    chunk: int | None = None,
    weights: Tensor | Sequence[float] = (1.0, 1.0, 1.0),
    row_weight: Tensor | None = None,
    denominators: Tensor | Sequence[float] | None = None,
    temperature: float = 1.0,
    divergence: str = "kl",
    beta: float | None = None,
    student_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """`distill_loss` of logits that are made chunk by chunk; the gradients of hidden, weight and bias in that pass.

        student = transform(hidden weight^T + bias)
        teacher = teacher_transform(teacher_hidden teacher_weight^T + teacher_bias)
        distill_loss(student, teacher, label, ...)

    Args:
        hidden: (K,...,D), or (...,D) of one student like the teacher or the labels, or a list of K tensors (...,D_k).
        weight: (V,D), which all students share, or (K,V,D), or a list of K tensors (V,D_k).
        teacher_hidden: (...,E), with teacher_weight (V,E); or without it logits (...,V), or a TopK; or None.
        bias, teacher_bias: like weight without its last dimension, or None.
        transform, teacher_transform: logits -> logits, differentiable: a softcap, a scale, a cut of the vocabulary.
            They get (K,R,V) and (R,V) of R rows and must treat the rows one by one; torch.compile's graph breaks there.
        chunk: rows R of a chunk; by default as many as keep logits and their gradient within 32 MiB. As much again
            holds gradients that wait; 72 MiB each where V is so large that the rows would be few.
        the rest: as `distill_loss`.
    Returns:
        loss () and means (3,K), as `distill_loss`.
    Raises:
        As `distill_loss`. Differentiable are hidden, weight and bias; a frozen weight costs no product.

    Logits are float32 (float64 where an input is), whatever the inputs and under autocast too. Where hidden and weight
    are bfloat16, the gradient of the logits is rounded to it for the products of the backward. The gradient of a weight
    is one product, or a sum of several in float32, or, where that would take more than 96 MiB, in its own dtype.
    """
    teacher, heads, leading = _arguments(hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias, label)
    plain = transform is None and teacher_transform is None
    first = heads.hidden[0]
    code, beta = check_divergence(divergence, beta, temperature, teacher_hidden)
    _check_options(temperature, chunk, teacher, teacher_transform)
    if plain:
        _check_vocabulary(heads.V, teacher)
    soft = as_tensor("weights", weights, first), row_weight, denominators
    label, given, masks, totals = _weighing(label, *soft, heads, leading)
    loss = Loss(label, given, masks, totals, temperature, code, beta)
    rows = chunk or chunk_rows(heads, teacher.weight is not None, transform is not None)
    call = autograd_linear.Call(teacher, loss, rows, student_entropy, transform, teacher_transform)
    enabled = torch.is_grad_enabled()
    needs: Any = tuple(enabled and any(t.requires_grad for t in group) for group in heads)
    if not torch.compiler.is_compiling():
        return autograd_linear.apply(heads, call, needs)[:2]
    return (autograd_linear.as_op if plain else _uncompiled)(heads, call, needs)[:2]


def _check_options(temperature: float, chunk: int | None, teacher: Teacher, teacher_transform) -> None:
    if teacher_transform is not None and teacher.hidden is None:
        raise ValueError("teacher_transform: there are no logits of a teacher to transform")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk: expected a number of rows from 1 on, or None, got {chunk!r}")


def _weighing(
    label, weights: Tensor, row_weight: Tensor | None, denominators, heads: Heads, leading
) -> tuple[Any, ...]:
    """label (N,), weights, row_weight (N,) or (K,N), denominators."""
    first, K, N = heads.hidden[0], heads.K, heads.N
    given = None if denominators is None else as_tensor("denominators", denominators, first)
    check_weights(first, K, leading, weights, row_weight, given)
    if label is not None:
        expect("label", label, LABELS, (leading,), first)
        label = label.reshape(N).long()
    if row_weight is not None:
        row_weight = row_weight if row_weight.is_floating_point() else row_weight.float()
        row_weight = row_weight.reshape(N if row_weight.shape == leading else (K, N))
    return label, weights, row_weight, _denominators(label, row_weight, N, first) if given is None else given


@torch.compiler.disable
def _uncompiled(*arguments):
    return autograd_linear.apply(*arguments)


def _arguments(hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias, label):
    """Teacher and Heads with one dimension of rows, and the leading shape."""
    like = teacher_hidden
    if isinstance(like, Tensor):  # of the shape that student logits would have: only the leading dimensions count
        like = like[..., :1]
    if isinstance(like, TopK):
        like = like.ids[..., :1] if isinstance(like.ids, Tensor) else None
    if like is not None and not isinstance(like, Tensor):
        raise TypeError(f"teacher_hidden: expected a tensor, a TopK or None, got {kind_of(like)}")
    first = hidden if isinstance(hidden, Tensor) else hidden[0] if hidden else hidden
    if not isinstance(first, Tensor) or first.dtype not in FLOATS:
        raise TypeError(f"hidden: expected floating tensors, got {kind_of(first)}")
    dims = like.dim() - 1 if like is not None else label.dim() if isinstance(label, Tensor) else None
    stacked = isinstance(hidden, Tensor) and (dims is None or first.dim() - 1 != dims)
    if first.dim() < 1 + stacked or (dims is not None and first.dim() - 1 - stacked != dims):
        raise ValueError(
            f"hidden: expected (K,...,D), or (...,D) like the teacher or the labels, got {tuple(first.shape)}"
        )
    leading, each = first.shape[stacked:-1], [hidden] if isinstance(hidden, Tensor) else list(hidden)
    K = first.shape[0] if stacked else len(each)
    for k, one in enumerate(each):
        if not isinstance(one, Tensor) or one.shape[:-1] != first.shape[:-1] or one.dtype != first.dtype:
            raise ValueError(f"hidden[{k}]: expected {(*leading, 'D')} in {first.dtype} like hidden[0]")
    N = math.prod(leading)
    rows = [
        one.reshape((K, N, -1) if stacked else (N, one.shape[-1])) if N else _empty(one, K, stacked) for one in each
    ]
    heads = Heads(rows, _each("weight", weight, K, 2), [] if bias is None else _each("bias", bias, K, 1))
    check_heads(heads, first)
    return _teacher(teacher_hidden, teacher_weight, teacher_bias, leading, heads.V, first), heads, leading


def _empty(one: Tensor, K: int, stacked: bool) -> Tensor:
    return one.reshape((K, 0, one.shape[-1]) if stacked else (0, one.shape[-1]))


def _each(name: str, given: Each, K: int, dims: int) -> list[Tensor]:
    """One tensor of `dims` dimensions, one stacked, or K; a stack of one is that one."""
    each = [given] if isinstance(given, Tensor) else list(given)
    for one in each:
        if not isinstance(one, Tensor) or one.dtype not in FLOATS:
            raise TypeError(f"{name}: expected floating tensors, got {kind_of(one)}")
    if isinstance(given, Tensor):
        good = given.dim() == dims or (given.dim() == dims + 1 and len(given) == K)
    else:
        good = len(each) == K and all(one.dim() == dims for one in each)
    if not good:
        shape = "(V,D)" if dims == 2 else "(V,)"
        raise ValueError(f"{name}: expected {shape}, or (K,...) or a list of K = {K}, got {shapes_of(each)}")
    return each


def _teacher(given, weight: Tensor | None, bias: Tensor | None, leading, V: int, first: Tensor) -> Teacher:
    N = math.prod(leading)
    tensors = {"teacher_hidden": given, "teacher_weight": weight, "teacher_bias": bias}
    for name, one in tensors.items():
        if isinstance(one, Tensor) and one.requires_grad:
            raise ValueError(f"{name}: only hidden, weight and bias are differentiable; pass {name}.detach()")
        if isinstance(one, Tensor) and one.device != first.device:
            raise ValueError(f"{name}: expected on {first.device} like hidden, got {one.device}")
    if weight is None and bias is not None:
        raise ValueError("teacher_bias: it belongs to teacher_weight, which is not given")
    if not isinstance(given, Tensor):
        if weight is not None:
            raise ValueError("teacher_weight: it belongs to hidden states, and teacher_hidden has none")
        if given is None:
            return Teacher(None, None, None, None, None, 0)
        # the classes of the student are checked with the ids
        probe = first.new_empty(()).expand(*leading, V)
        check_logits(probe, given, None, 1.0)
        k = given.ids.shape[-1]
        return Teacher(None, None, None, given.ids.reshape(N, k), given.logprobs.reshape(N, k), TAILS[given.tail])
    if given.dtype not in FLOATS or given.shape[:-1] != leading:
        raise ValueError(f"teacher_hidden: expected {(*leading, 'D')} like hidden, got {tuple(given.shape)}")
    if weight is not None and (weight.dim() != 2 or weight.shape[1] != given.shape[-1] or weight.dtype not in FLOATS):
        raise ValueError(f"teacher_weight: expected (V,{given.shape[-1]}) in a float, got {tuple(weight.shape)}")
    if weight is not None and bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"teacher_bias: expected ({len(weight)},) like teacher_weight, got {tuple(bias.shape)}")
    return Teacher(given.reshape(N, given.shape[-1]), weight, bias, None, None, 0)


def _check_vocabulary(V: int, teacher: Teacher) -> None:
    if teacher.hidden is not None:
        given = teacher.hidden.shape[-1] if teacher.weight is None else len(teacher.weight)
        if given != V:
            cut = "teacher_transform" if given > V else "transform"
            raise ValueError(
                f"teacher: expected the student's {V} classes, got {given}: cut them,"
                f" {cut}=lambda logits: logits[..., :{min(given, V)}]"
            )


def _denominators(label: Tensor | None, row_weight: Tensor | None, N: int, first: Tensor) -> Tensor:
    """The number of labelled rows and the sum of the row weights: (2,), or (2,K) of row weights (K,N)."""
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    zero = torch.zeros((), dtype=dtype, device=first.device)
    hard = zero if label is None else (label != UNLABELLED).sum().to(dtype)
    soft = zero + N if row_weight is None else row_weight.to(dtype).sum(-1)
    return torch.stack([hard.expand_as(soft), soft])
