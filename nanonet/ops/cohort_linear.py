"""One linear layer for K students: base product, bias and LoRA of all of them in one op.

Public function, check, schema, fake, backward, registration, in that order. Bias-only tuning, LoRA and full
tuning are the same op with parts absent; a frozen weight gets no gradient and costs no GEMM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanonet import reference
from nanonet.schemas import SCHEMAS


def cohort_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """y_k = x_k W_k^T + b_k + scale_k dropout(x_k) A_k^T B_k^T

    Args:
        x: (K,M,D), or (M,D) where every student sees the same input.
        weight: (F,D) shared by the students, or (K,F,D).
        bias: (K,F) or None.
        lora_a, lora_b: (K,R,D) and (K,F,R), or both None; mixed ranks are padded with zeros.
        scale: (K,), not requiring grad, ones if None.
        dropout: probability in [0,1) on the input of A. Its mask is a hash of the seed and the element's index:
            every backend draws the same one, and none stores it.
        seed: () int64 on x's device; None turns the dropout off.
    All floating arguments in one dtype; under autocast they are cast as nn.Linear casts.
    Returns:
        (K,M,F) in x's dtype. K is taken from whichever argument has it; 1 if none does.
    Raises:
        TypeError, ValueError: another kind, dtype, shape or device; one of A and B without the other; a scale
            that requires grad.
        RuntimeError: on a second derivative, which is not implemented.

    Kept for the backward, beside the parameters: x where W or A is trained, low = scale_k dropout(x_k) A_k^T (K,M,R)
    where B is.

    Error: at most twice that of torch's own matmuls in the same dtype, both against float64
    (tests/ops/test_cohort_linear.py). Source: Hu et al. 2021 (arXiv 2106.09685), eq. 3, for A and B.
    """
    x, weight, bias, lora_a, lora_b, scale = _autocast(x, weight, bias, lora_a, lora_b, scale)
    _check(x, weight, bias, lora_a, lora_b, scale, seed, dropout)
    return torch.ops.nanonet.cohort_linear(x, weight, bias, lora_a, lora_b, scale, seed, dropout)[0]


def _autocast(x: Tensor, *others: Tensor | None) -> list:
    if isinstance(x, Tensor) and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        # float64 stays as it is
        cast = (torch.float32, torch.bfloat16, torch.float16)
        return [t.to(dtype) if isinstance(t, Tensor) and t.dtype in cast else t for t in (x, *others)]
    return [x, *others]


def _students(x, weight, bias, lora_a) -> int:
    sizes = [t.shape[0] for t, d in ((x, 3), (weight, 3), (bias, 2), (lora_a, 3)) if t is not None and t.dim() == d]
    return sizes[0] if sizes else 1


def _check(x, weight, bias, lora_a, lora_b, scale, seed, dropout) -> None:
    """Name the first argument that is wrong, what was expected and what came."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: expected a floating tensor (K,M,D) or (M,D), got {getattr(x, 'dtype', type(x).__name__)}")
    if not isinstance(weight, Tensor) or x.dim() not in (2, 3) or weight.dim() not in (2, 3):
        raise ValueError(
            f"expected x (K,M,D) or (M,D) and weight (F,D) or (K,F,D), got {_shape(x)} and {_shape(weight)}"
        )
    for name, value in (("bias", bias), ("lora_a", lora_a), ("lora_b", lora_b), ("scale", scale), ("seed", seed)):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if (lora_a is None) != (lora_b is None):
        raise ValueError("lora_a and lora_b: expected both or neither")
    K, (F, D) = _students(x, weight, bias, lora_a), weight.shape[-2:]
    if K < 1:
        raise ValueError(f"expected one student or more, got x {_shape(x)} and weight {_shape(weight)}")
    R = 0 if lora_a is None or lora_a.dim() != 3 else lora_a.shape[1]
    wanted = {
        "x": (x, ((x.shape[-2], D), (K, x.shape[-2], D))),
        "weight": (weight, ((F, D), (K, F, D))),
        "bias": (bias, ((K, F),)),
        "lora_a": (lora_a, ((K, R, D),)),
        "lora_b": (lora_b, ((K, F, R),)),
        "scale": (scale, ((K,),)),
    }
    for name, (value, shapes) in wanted.items():
        if value is None:
            continue
        if value.dtype != x.dtype:
            raise TypeError(f"{name}: expected {x.dtype} like x, got {value.dtype}")
        if value.shape not in shapes:
            raise ValueError(f"{name}: expected shape {' or '.join(map(str, shapes))}, got {_shape(value)}")
        if value.device != x.device:
            raise ValueError(f"{name}: expected on {x.device} like x, got {value.device}")
    if scale is not None and scale.requires_grad:
        raise ValueError("scale: not differentiable; pass scale.detach()")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
    if seed is not None and (seed.dtype != torch.int64 or seed.dim() != 0 or seed.device != x.device):
        raise ValueError(f"seed: expected an int64 scalar tensor on {x.device}, got {seed.dtype} {_shape(seed)}")


def _shape(value: object) -> tuple | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


_LIBRARY = torch.library.Library("nanonet", "FRAGMENT")
for _name in ("cohort_linear", "cohort_linear_backward"):
    _LIBRARY.define(_name + SCHEMAS[_name], tags=(torch.Tag.pt2_compliant_tag,))


def _fake(x, weight, bias, lora_a, lora_b, scale, seed, dropout):
    K, M = _students(x, weight, bias, lora_a), x.shape[-2]
    return x.new_empty(K, M, weight.shape[-2]), x.new_empty(0 if lora_a is None else (K, M, lora_a.shape[1]))


def _backward_fake(dy, x, low, weight, lora_a, lora_b, scale, seed, dropout, shared_x, needs):
    K, M, F = dy.shape
    dx = (M, weight.shape[-1]) if shared_x else (K, M, weight.shape[-1])
    shapes = (dx, weight.shape, (K, F), *(None if t is None else t.shape for t in (lora_a, lora_b)))
    return tuple(dy.new_empty(shape if need else 0) for need, shape in zip(needs, shapes, strict=True))


class _CohortLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, lora_a, lora_b, scale, seed, dropout):
        with torch._C._AutoDispatchBelowAutograd():
            y, low = torch.ops.nanonet.cohort_linear.default(x, weight, bias, lora_a, lora_b, scale, seed, dropout)
        # x serves the gradients of W and A only, low that of B: where none is wanted they are not kept alive
        _, need_w, _, need_a, need_b = ctx.needs_input_grad[:5]
        kept = x if need_w or need_a else None, low if need_b else None
        ctx.save_for_backward(*kept, weight, lora_a, lora_b, scale, seed)
        ctx.mark_non_differentiable(low)
        ctx.set_materialize_grads(False)  # else zeros are made for the gradient of low
        ctx.shared_x = x.dim() == 2
        ctx.dropout = dropout
        return y, low

    @staticmethod
    def backward(ctx, dy, _):
        if torch.is_grad_enabled():
            raise RuntimeError("cohort_linear has no second derivative: call backward without create_graph=True")
        if dy is None:
            return (None,) * 8
        needs = list(ctx.needs_input_grad[:5])
        gradients = torch.ops.nanonet.cohort_linear_backward(dy, *ctx.saved_tensors, ctx.dropout, ctx.shared_x, needs)
        return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None, None


def _reference(*arguments):
    _check(*arguments)  # of the op called by itself too: torch would broadcast
    return reference.cohort_linear(*arguments)


def _check_backward(dy, x, low, weight, lora_a, lora_b, scale, seed, dropout, shared_x, needs) -> None:
    if dy.dim() != 3 or weight.dim() not in (2, 3) or len(needs) != 5:
        raise ValueError(
            f"expected dy (K,M,F), weight (F,D) or (K,F,D) and 5 needs, got {_shape(dy)}, {_shape(weight)}"
        )
    K, M, F = dy.shape
    rows = x if x is not None else dy.new_empty(()).expand(*(() if shared_x else (K,)), M, weight.shape[-1])
    if rows.dim() != 3 - shared_x or (
        low is not None and low.shape != (K, M, 0 if lora_a is None else lora_a.shape[1])
    ):
        raise ValueError(f"x, low: expected of dy's {K} students and {M} rows, got {_shape(x)} and {_shape(low)}")
    if rows.shape[-2] != M or weight.shape[-2] != F:
        raise ValueError(f"dy: expected (K,M,F) of x {_shape(x)} and weight {_shape(weight)}, got {_shape(dy)}")
    _check(rows, weight, dy[:, 0] if M else dy.new_empty(K, F), lora_a, lora_b, scale, seed, dropout)


def _backward_reference(*arguments):
    _check_backward(*arguments)
    # contiguous, as the fake says: a product of transposes can come out transposed
    return tuple(gradient.contiguous() for gradient in reference.cohort_linear_backward(*arguments))


_LIBRARY.impl("cohort_linear", _reference, "CompositeExplicitAutograd")
_LIBRARY.impl("cohort_linear_backward", _backward_reference, "CompositeExplicitAutograd")
_LIBRARY.impl("cohort_linear", lambda *arguments: _CohortLinear.apply(*arguments), "Autograd")
torch.library.register_fake("nanonet::cohort_linear", _fake, lib=_LIBRARY)
torch.library.register_fake("nanonet::cohort_linear_backward", _backward_fake, lib=_LIBRARY)
