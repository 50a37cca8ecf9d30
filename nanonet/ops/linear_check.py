"""What the ops of the loss from hidden states accept, beside what check.py says of every loss."""

from __future__ import annotations

from torch import Tensor

from nanonet.ops.check import FLOATS, LABELS, check_weights, expect
from nanonet.ops.linear_chunks import Loss, Teacher
from nanonet.ops.linear_products import Heads


def shapes_of(each: list[Tensor]) -> str:
    return ", ".join(str(tuple(one.shape)) for one in each)


def check_heads(heads: Heads, first: Tensor) -> None:
    """Hidden states, weights and biases that fit each other, on the device of the first."""
    V = heads.V
    for k in range(max(len(group) for group in heads)):
        x, w, b = (group[k] if k < len(group) else group[0] if group else None for group in heads)
        if x is None or w is None or w.shape[-2:] != (V, x.shape[-1]) or V < 1:
            raise ValueError(f"weight: expected (V,D) with the D of hidden, got {shapes_of(heads.weight)}")
        if b is not None and b.shape[-1] != V:
            raise ValueError(f"bias: expected ({V},) like weight, got {shapes_of(heads.bias)}")
    for tensors in heads[1:]:
        for one in tensors:
            if one.device != first.device:
                raise ValueError(f"weight, bias: expected on {first.device} like hidden, got {one.device}")


def check_call(heads: Heads, teacher: Teacher, loss: Loss, chunk: int, needs: tuple[bool, ...]) -> None:
    """Of a call of the raw op, which the public function has not seen: nothing may be broadcast or left over."""
    for name, group, dims in (("hidden", heads.hidden, 2), ("weight", heads.weight, 2), ("bias", heads.bias, 1)):
        stacked = len(group) == 1 and group[0].dim() == dims + 1
        if any(one.dtype not in FLOATS or one.dim() != dims + stacked for one in group):
            raise ValueError(f"{name}: expected floating tensors of {dims} dimensions, or one stacked")
        if not group and name != "bias":
            raise ValueError(f"{name}: expected one tensor or more")
    first, K, N = heads.hidden[0], heads.K, heads.N
    if K < 1 or any(one.shape[-2] != N or one.dtype != first.dtype for one in heads.hidden):
        raise ValueError(f"hidden: expected one or more of the same rows and dtype, got {shapes_of(heads.hidden)}")
    for name, group, dims in (("weight", heads.weight, 2), ("bias", heads.bias, 1)):
        given = len(group[0]) if len(group) == 1 and group[0].dim() > dims else len(group)
        shared = len(group) == 1 and group[0].dim() == dims
        if group and not shared and given != K:
            raise ValueError(f"{name}: expected one, or one for each of K = {K} students, got {shapes_of(group)}")
    check_heads(heads, first)
    _check_teacher(teacher, first, N, heads.V)
    check_weights(first, K, (N,), loss.weights, loss.row_weight, loss.denominators)
    if loss.label is not None:
        expect("label", loss.label, LABELS, ((N,),), first)
    if chunk < 1 or len(needs) != 3:
        raise ValueError(f"chunk, needs: expected a chunk from 1 on and 3 needs, got {chunk} and {len(needs)}")


def _check_teacher(teacher: Teacher, first: Tensor, N: int, V: int) -> None:
    hidden, weight, bias, ids, logprobs, _ = teacher
    if (ids is None) != (logprobs is None) or (hidden is not None and ids is not None):
        raise ValueError("teacher: expected hidden states, logits, or ids with logprobs")
    if (hidden is None and weight is not None) or (weight is None and bias is not None):
        raise ValueError("teacher_weight, teacher_bias: they belong to hidden states")
    if hidden is not None:
        width = V if weight is None else weight.shape[-1] if weight.dim() else 0
        expect("teacher_hidden", hidden, FLOATS, ((N, width),), first)
        if weight is not None:
            expect("teacher_weight", weight, FLOATS, ((V, width),), first)
        if bias is not None:
            expect("teacher_bias", bias, FLOATS, ((V,),), first)
    if ids is not None and logprobs is not None:
        k = ids.shape[-1] if ids.dim() else 0
        expect("ids", ids, LABELS, ((N, k),), first)
        expect("logprobs", logprobs, FLOATS, ((N, k),), first)
