"""One case judged: the callable and the definition in the same dtype, both against the definition in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanonet import reference
from nanonet.reference import DEFAULT_BETA, DIVERGENCES
from nanonet.testing.report import Check, ended

# what is allowed beyond twice torch's error: (values, gradients), relative; in half precision a unit in the last place
ALLOWED = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (2e-6, 2e-5),
    torch.bfloat16: (2e-6, 4e-3),
    torch.float16: (2e-6, 5e-4),
}
# a gradient below this share of its upstream is judged by its absolute error
LEAST_GRADIENT = 1e-2


@dataclass(frozen=True)
class Loss:
    """The callable and what it says it is."""

    fn: Callable[..., Tensor]
    code: int
    beta: float
    temperature: float
    tau_squared: bool
    reduction: str

    def exact(self, student: Tensor, teacher: Tensor, upstream: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The definition in the dtype of its inputs: value (N,) or (), gradient (N,C) under upstream (N,)."""
        scale = 1.0 if self.tau_squared else self.temperature**-2
        share = keep.to(upstream.dtype) * scale
        if self.reduction == "mean":
            share = share / keep.sum().clamp_min(1)
        options = self.temperature, self.code, self.beta
        rows = reference.distill_terms(student[None], teacher, None, *options)[1, 0]
        rows = torch.where(share == 0, 0, rows * share)
        terms = torch.zeros(3, 1, len(rows), dtype=upstream.dtype, device=upstream.device)
        terms[1, 0] = upstream * share
        gradient = reference.row_gradient(terms, student[None], teacher, None, *options)[0]
        return (rows if self.reduction == "none" else rows.sum()), gradient

    def call(
        self, leaf: Tensor, teacher: Tensor, upstream: Tensor, arguments: Mapping[str, Any], times: int = 1
    ) -> list[Tensor]:
        """What the callable gives for as many classes of leaf as teacher has: value, and the gradient of these under
        upstream (N,), the same for all rows if reduced; so many times from one graph."""
        C = teacher.shape[1]
        value = self.fn(leaf if leaf.shape[1] == C else leaf[:, :C], teacher, **arguments)
        expected = () if self.reduction != "none" else (len(teacher),)
        if value.shape != expected:
            raise ValueError(f"the value has shape {tuple(value.shape)}, expected {expected} ({self.reduction})")
        weight = upstream if self.reduction == "none" else upstream[0]
        weight = weight.to(value.dtype)
        left = range(times)[::-1]
        gradients = [torch.autograd.grad(value, leaf, weight, retain_graph=more > 0)[0][:, :C] for more in left]
        return [value.detach(), *gradients]


def make_loss(fn, divergence, beta, temperature, tau_squared, reduction) -> Loss:
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence: expected one of {', '.join(DIVERGENCES)}, got {divergence!r}")
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"reduction: expected none, sum or mean, got {reduction!r}")
    if divergence not in DEFAULT_BETA and beta is not None:
        raise ValueError(f"beta: {divergence} has none, got {beta}")
    beta = DEFAULT_BETA.get(divergence, 0.5) if beta is None else beta
    if not 0 < beta < 1:
        raise ValueError(f"beta: expected 0 < beta < 1 (at its ends {divergence} is another divergence), got {beta}")
    return Loss(fn, DIVERGENCES[divergence], beta, temperature, tau_squared, reduction)


def judge(
    loss: Loss,
    name: str,
    leaf: Tensor,
    teacher: Tensor,
    keep: Tensor | None = None,
    mask: Callable[[Tensor], Mapping[str, Any]] | None = None,
) -> list[Check]:
    """The value and the gradient of one case, or the error that it ended in; of the rows in `keep`, where given."""
    arguments = {} if keep is None or mask is None else mask(keep)
    dtype = name_of(leaf.dtype)
    N = len(leaf)
    leaf = leaf.detach()
    student = leaf[:, : teacher.shape[1]].clone()
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    g = torch.Generator().manual_seed(1)
    upstream = torch.randn(N, generator=g).to(student.device, wide)
    upstream = torch.where(torch.arange(N, device=student.device) % 3 == 2, 0, upstream)
    if loss.reduction != "none":
        upstream = torch.full_like(upstream, -2.5)
    keep = torch.ones(N, dtype=torch.bool, device=student.device) if keep is None else keep
    exact = loss.exact(student.double(), teacher.double(), upstream.double(), keep)
    plain = loss.exact(student, teacher, upstream, keep)
    before = leaf.clone(), teacher.clone()
    try:
        found = loss.call(leaf.requires_grad_(), teacher, upstream, arguments)
    except Exception as error:
        return [ended(name, dtype, error)]
    ties = name == "student is teacher" and loss.code == DIVERGENCES["tv"]  # any slope from -1 to 1 is right there
    scale = torch.where(keep, upstream, 0).abs() / (keep.sum().clamp_min(1) if loss.reduction == "mean" else 1)
    errors = [(value_error(v, exact[0]), gradient_error(d, exact[1], scale)) for v, d in (found, plain)]
    allowed = ALLOWED[student.dtype]
    checks = [
        Check(name, dtype, what, errors[0][i], 2 * errors[1][i] + allowed[i])
        for i, what in enumerate(("value", "gradient"))
        if not (ties and what == "gradient")
    ]
    same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip((leaf, teacher), before, strict=True))
    return checks if same else [*checks, Check(name, dtype, "inputs", math.inf, 0.0, "an input was written over")]


def check_value(case: str, dtype: torch.dtype, what: str, found: Tensor, plain: Tensor, exact: Tensor) -> Check:
    """The values of an op beside those of torch in the same dtype."""
    bar = 2 * value_error(plain, exact) + ALLOWED[dtype][0]
    return Check(case, name_of(dtype), what, value_error(found, exact), bar)


def check_gradient(
    case: str, dtype: torch.dtype, what: str, found: Tensor, plain: Tensor, exact: Tensor, scale: Tensor
) -> Check:
    """The gradient of an op beside that of torch in the same dtype; scale: the upstream of each row."""
    bar = 2 * gradient_error(plain, exact, scale) + ALLOWED[dtype][1]
    return Check(case, name_of(dtype), what, gradient_error(found, exact, scale), bar)


def check_bits(case: str, dtype: torch.dtype, what: str, one: Sequence[Tensor], two: Sequence[Tensor]) -> Check:
    same = all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(one, two, strict=True))
    note = "" if same else "the second call differs"
    return Check(case, name_of(dtype), what, 0.0 if same else math.inf, 0.0, note)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def value_error(value: Tensor, exact: Tensor) -> float:
    """The largest |value - exact| over max(1, |exact|); infinities have to be the same, and the shapes."""
    if value.shape != exact.shape:
        return math.inf
    if not exact.numel():
        return 0.0
    same = (value.double() == exact) | exact.isnan()
    error = (value.double() - exact).abs() / exact.abs().clamp_min(1)
    return torch.where(same, 0, error.nan_to_num(math.inf)).max().item()


def gradient_error(gradient: Tensor, exact: Tensor, scale: Tensor) -> float:
    """The largest |gradient - exact| / |exact| of a row in the Euclidean norm, of rows that have a finite one."""
    if gradient.shape != exact.shape:
        return math.inf
    if not exact.numel():
        return 0.0
    size = torch.maximum(exact.norm(dim=-1), (LEAST_GRADIENT * scale).double()).clamp_min(1e-30)
    error = (gradient.double() - exact).norm(dim=-1) / size
    return torch.where(exact.isfinite().all(-1), error.nan_to_num(math.inf), 0).max().item()
