"""A conformance kit for the linear layer of K students: `check_cohort_linear(fn)` judges any callable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nanonet import reference
from nanonet.testing.report import Check, Report, ended

# what is allowed beyond twice torch's error, relative to the row's largest value
ALLOWED = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 4e-3}
LEAVES = ("x", "weight", "bias", "lora_a", "lora_b")
Arguments = dict[str, Tensor | None]


def check_cohort_linear(
    fn: Callable[..., Tensor],
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Report:
    """Judge fn(x, weight, bias, lora_a, lora_b, scale, dropout=, seed=) with the arguments of `nanonet.cohort_linear`:
    y and the gradients by autograd against K separate layers in float64, dropout masks, layouts, the same bits twice.

    Returns:
        A report to print; `report.raise_failures()` in a test. Nothing is raised for what fn does.
    """
    checks: list[Check] = []
    for dtype in dtypes:
        for case, arguments, dropout in _cases(dtype, seed, device):
            checks += _judge(fn, case, arguments, dropout)
    return Report(tuple(checks), ())


def _cases(dtype: torch.dtype, seed: int, device) -> Iterator[tuple[str, Arguments, float]]:
    def draw(K=3, M=5, D=24, F=16, R=4, shared_x=False, shared_w=True, bias=True, lora=True) -> Arguments:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int, fan: int = 1) -> Tensor:
            return (torch.randn(*shape, generator=g, dtype=torch.float64) * fan**-0.5).to(device, dtype)

        return dict(
            x=normal(M, D) if shared_x else normal(K, M, D),
            weight=normal(F, D, fan=D) if shared_w else normal(K, F, D, fan=D),
            bias=normal(K, F) if bias else None,
            lora_a=normal(K, R, D, fan=D) if lora else None,
            lora_b=normal(K, F, R, fan=R) if lora else None,
            scale=normal(K) if lora else None,
        )

    for shared_x in (False, True):
        for shared_w in (False, True):
            what = f"{'one' if shared_x else 'own'} x, {'one' if shared_w else 'own'} W"
            yield what, draw(shared_x=shared_x, shared_w=shared_w), 0.0
            yield f"{what}, dropout", draw(shared_x=shared_x, shared_w=shared_w), 0.25
    yield "no bias", draw(bias=False), 0.0
    yield "no LoRA", draw(lora=False), 0.0
    yield "W alone", draw(bias=False, lora=False), 0.0
    yield "one student", draw(K=1), 0.0
    yield "no rows", draw(M=0), 0.0
    yield "one of everything", draw(2, 1, 1, 1, 1), 0.0
    yield "ragged", draw(4, 65, 33, 17, 9, shared_w=False), 0.25
    yield "several tiles", draw(2, 300, 200, 272, 16), 0.0
    turned = draw(shared_w=False)
    yield "turned", {n: v.mT.contiguous().mT if v is not None and v.dim() == 3 else v for n, v in turned.items()}, 0.0
    yield "x of 100", {n: 100 * v if n == "x" and v is not None else v for n, v in draw().items()}, 0.0
    yield "zeros", {n: None if v is None else torch.zeros_like(v) for n, v in draw().items()}, 0.0


def separate(arguments: Arguments, mask: Tensor | None) -> Tensor:
    """K plain layers, one after the other: y (K,M,F)."""
    x, weight, bias, lora_a, lora_b, scale = (arguments[name] for name in (*LEAVES, "scale"))
    assert x is not None and weight is not None
    K = _students(arguments)
    rows = []
    for k in range(K):
        own = x[k] if x.dim() == 3 else x
        y = own @ (weight[k] if weight.dim() == 3 else weight).mT
        if bias is not None:
            y = y + bias[k]
        if lora_a is not None and lora_b is not None and scale is not None:
            y = y + scale[k] * ((own if mask is None else own * mask[k]) @ lora_a[k].mT @ lora_b[k].mT)
        rows.append(y)
    return torch.stack(rows)


def _students(arguments: Arguments) -> int:
    whole = [(arguments[name], 2 if name == "bias" else 3) for name in LEAVES]
    return max([1, *(t.shape[0] for t, dims in whole if t is not None and t.dim() == dims)])


def _run(call: Callable[[Arguments], Tensor], arguments: Arguments, dy: Tensor) -> dict[str, Tensor]:
    """y, and the gradients of the leaves that are there."""
    leaves = {n: None if v is None else v.detach().clone().requires_grad_(n in LEAVES) for n, v in arguments.items()}
    y = call(leaves)
    wanted = {n: v for n, v in leaves.items() if n in LEAVES and v is not None}
    gradients = torch.autograd.grad(y, list(wanted.values()), dy.to(y.dtype))
    return {"y": y.detach(), **{f"d{n}": d for n, d in zip(wanted, gradients, strict=True)}}


def _judge(fn: Callable[..., Tensor], case: str, arguments: Arguments, dropout: float) -> list[Check]:
    x = arguments["x"]
    assert x is not None
    dtype, device = str(x.dtype).removeprefix("torch."), x.device
    given: dict[str, Any] = {}
    mask = None
    if dropout:
        number = torch.tensor(123456789012, device=device)
        given = {"dropout": dropout, "seed": number}
        mask = reference.dropout_scale(number, _students(arguments), x.shape[-2], x.shape[-1], dropout)
    wide = {n: None if v is None else v.double() for n, v in arguments.items()}
    wide_mask, own_mask = (None if mask is None else mask.to(d) for d in (torch.float64, x.dtype))
    dy = torch.randn(separate(wide, None).shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dy = dy.to(device)
    exact = _run(lambda some: separate(some, wide_mask), wide, dy.to(x.dtype).double())
    plain = _run(lambda some: separate(some, own_mask), arguments, dy)
    try:
        found, again = (_run(lambda some: fn(**some, **given), arguments, dy) for _ in range(2))
    except Exception as error:
        return [ended(case, dtype, error)]
    checks = []
    for name, truth in exact.items():
        bar = 2 * error_of(plain[name], truth) + ALLOWED[x.dtype]
        checks.append(Check(case, dtype, name, error_of(found[name], truth), bar))
    same = all(torch.equal(found[name], again[name]) for name in exact)
    checks.append(Check(case, dtype, "bits", 0.0 if same else math.inf, 0.0, "" if same else "the second call differs"))
    return checks


def error_of(value: Tensor, exact: Tensor) -> float:
    """The largest |value - exact| over the largest |exact|, or over 1e-3; infinite where a shape is another."""
    if value.shape != exact.shape:
        return math.inf
    if not exact.numel():
        return 0.0
    return ((value.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-3)).nan_to_num(math.inf).item()
