"""A conformance kit for distillation losses: `print(check_distillation(fn, divergence="kl"))` judges any callable.

Judged against the definition in float64 (reference.py), from the inputs as they are stored: values, gradients, rows that
break naive formulas, layouts, masks, upstream gradients, determinism, and that every argument changes something. The
bar is twice the error that the same definition makes in torch in the same dtype, plus a small constant.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanonet import reference
from nanonet.reference import DEFAULT_BETA, DIVERGENCES

# what is allowed beyond twice torch's error: (values, gradients), relative
ALLOWED = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 2e-5),
    torch.bfloat16: (2e-6, 1e-3),
    torch.float16: (2e-6, 2e-4),
}
# a gradient below this share of its upstream is judged by its absolute error
LEAST_GRADIENT = 1e-3


@dataclass(frozen=True)
class Check:
    """One line of a report; it passed if error <= bar. Errors are relative, of the worst row."""

    case: str
    dtype: str
    what: str
    error: float
    bar: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.bar  # NaN is not

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILED"
        return f"{self.case:<24}{self.dtype:<10}{self.what:<12}{self.error:>9.1e}{self.bar:>9.1e}  {verdict} {self.note}"


@dataclass(frozen=True)
class Report:
    """What was checked, in order; `untried` are arguments of the callable that no case gave another value."""

    checks: tuple[Check, ...]
    untried: tuple[str, ...]

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def raise_failures(self) -> None:
        """AssertionError that names every case that failed, and its error."""
        if self.failures:
            raise AssertionError("\n".join(["the loss does not conform:", *map(str, self.failures)]))

    def __str__(self) -> str:
        head = f"{'case':<24}{'dtype':<10}{'what':<12}{'error':>9}{'bar':>9}"
        last = f"{len(self.failures)} of {len(self.checks)} failed"
        if self.untried:
            last += f"; not tried: {', '.join(self.untried)} (give `arguments`)"
        return "\n".join([head, *map(str, self.checks), last])


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

    def call(self, leaf: Tensor, teacher: Tensor, upstream: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
        """What the callable gives for as many classes of leaf as teacher has: value, and the gradient of these under
        upstream (N,), the same for all rows if reduced."""
        C = teacher.shape[1]
        value = self.fn(leaf if leaf.shape[1] == C else leaf[:, :C], teacher, **arguments)
        expected = () if self.reduction != "none" else (len(teacher),)
        if value.shape != expected:
            raise ValueError(f"the value has shape {tuple(value.shape)}, expected {expected} ({self.reduction})")
        weight = upstream if self.reduction == "none" else upstream[0]
        (gradient,) = torch.autograd.grad(value, leaf, weight.to(value.dtype), retain_graph=True)
        (again,) = torch.autograd.grad(value, leaf, weight.to(value.dtype))
        if not torch.equal(gradient.nan_to_num(), again.nan_to_num()):
            raise ValueError("a second backward of the same graph gives another gradient")
        return value.detach(), gradient[:, :C]


def check_distillation(
    fn: Callable[..., Tensor],
    *,
    divergence: str,
    beta: float | None = None,
    temperature: float = 1.0,
    tau_squared: bool = True,
    reduction: str = "none",
    mask: Callable[[Tensor], Mapping[str, Any]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Report:
    """Judge fn(student, teacher) of logits (N,C), (N,C), which claims to be tau^2 D(teacher, student) of each row.

    Args:
        divergence, beta, temperature: what fn computes; names and beta as in `nanonet.distill_terms`.
        tau_squared: whether fn multiplies by temperature^2.
        reduction: what fn returns: "none" (N,), "sum" (), or "mean" () over the rows that count.
        mask: makes the keyword arguments by which fn counts only some rows, from a bool (N,).
        arguments: other keyword arguments of fn, each with a value that must change the result.
    Returns:
        A report to print; `report.raise_failures()` in a test. Nothing is raised for what fn does, its own errors
        included: they are checks that failed.
    Raises:
        ValueError: an unknown divergence or reduction, or a beta that the divergence does not have.
    """
    loss = _loss(fn, divergence, beta, temperature, tau_squared, reduction)
    checks = []
    for dtype in dtypes:
        for name, student, teacher in _cases(dtype, seed, device):
            checks += _judge(loss, name, student, teacher)
        checks += _layouts(loss, dtype, seed, device)
        if mask is not None:
            checks += _masks(loss, mask, dtype, seed, device)
        checks += _habits(loss, dict(arguments or {}), dtype, seed, device)
    known = set(arguments or {}) | set(mask(torch.ones(1, dtype=torch.bool, device=device)) if mask else ())
    parameters = list(inspect.signature(fn).parameters.values())[2:]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return Report(tuple(checks), tuple(p.name for p in parameters if p.kind in kinds and p.name not in known))


def _loss(fn, divergence, beta, temperature, tau_squared, reduction) -> Loss:
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


def _draw(N: int, C: int, dtype: torch.dtype, seed: int, device, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(2, N, C, generator=g, dtype=torch.float64)).to(device, dtype)
    return student, teacher


def _cases(dtype: torch.dtype, seed: int, device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, student, teacher: plain shapes, then the rows that break naive formulas."""
    for N, C in ((1, 4), (3, 1), (5, 33), (8, 1000)):
        yield f"{N} x {C}", *_draw(N, C, dtype, seed, device)
    student, teacher = _draw(8, 4096, dtype, seed, device, spread=2.0)
    yield "student near teacher", (teacher + 0.05 * student).to(dtype), teacher
    student, teacher = _draw(6, 64, dtype, seed, device)
    yield "student is teacher", teacher.clone(), teacher
    absent = torch.arange(64, device=device) % 3 == 0
    yield "same classes at -inf", student.masked_fill(absent, -math.inf), teacher.masked_fill(absent, -math.inf)
    yield "teacher one-hot, -inf", student, teacher.masked_fill(torch.arange(64, device=device) != 5, -math.inf)
    yield "both underflow", student - 300 * absent, teacher - 300 * absent
    yield "both far below", student - 2000, teacher - 2000
    yield "logits of +-1e4", student.sign() * 1e4, teacher.sign() * 1e4
    rows = torch.arange(6, device=device)
    one, other = torch.full_like(student, -40.0), torch.full_like(student, -40.0)
    one[rows, rows], other[rows, rows + 6] = 40.0, 40.0
    yield "one-hot, alike", one, one.clone()
    yield "one-hot, apart", one, other


def _judge(loss: Loss, name: str, leaf: Tensor, teacher: Tensor, keep: Tensor | None = None, **arguments: Any):
    """The value and the gradient of one case, or the error that it ended in."""
    dtype = str(leaf.dtype).removeprefix("torch.")
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
        found = loss.call(leaf.requires_grad_(), teacher, upstream, **arguments)
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        return [Check(name, dtype, "call", math.inf, 0.0, line[:100])]
    ties = name == "student is teacher" and loss.code == DIVERGENCES["tv"]  # any slope from -1 to 1 is right there
    scale = torch.where(keep, upstream, 0).abs() / (keep.sum().clamp_min(1) if loss.reduction == "mean" else 1)
    errors = [(_value_error(v, exact[0]), _gradient_error(d, exact[1], scale)) for v, d in (found, plain)]
    allowed = ALLOWED[student.dtype]
    checks = [
        Check(name, dtype, what, errors[0][i], 2 * errors[1][i] + allowed[i])
        for i, what in enumerate(("value", "gradient"))
        if not (ties and what == "gradient")
    ]
    same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip((leaf, teacher), before, strict=True))
    return checks if same else [*checks, Check(name, dtype, "inputs", math.inf, 0.0, "an input was written over")]


def _value_error(value: Tensor, exact: Tensor) -> float:
    """The largest |value - exact| over max(1, |exact|); infinities have to be the same."""
    same = (value.double() == exact) | exact.isnan()
    error = (value.double() - exact).abs() / exact.abs().clamp_min(1)
    return torch.where(same, 0, error.nan_to_num(math.inf)).max().item()


def _gradient_error(gradient: Tensor, exact: Tensor, scale: Tensor) -> float:
    """The largest |gradient - exact| / |exact| of a row in the Euclidean norm; rows without an exact one are left out."""
    size = torch.maximum(exact.norm(dim=-1), (LEAST_GRADIENT * scale).double()).clamp_min(1e-30)
    error = (gradient.double() - exact).norm(dim=-1) / size
    return torch.where(exact.isfinite().all(-1), error.nan_to_num(math.inf), 0).max().item()


def _layouts(loss: Loss, dtype: torch.dtype, seed: int, device) -> list[Check]:
    student, teacher = _draw(5, 40, dtype, seed, device)
    turned = teacher.T.contiguous().T
    return _judge(loss, "strided rows", student, teacher[:, :33]) + _judge(loss, "turned", student, turned)


def _masks(loss: Loss, mask: Callable[[Tensor], Mapping[str, Any]], dtype, seed, device) -> list[Check]:
    student, teacher = _draw(6, 33, dtype, seed, device)
    keep = torch.arange(6, device=device) % 2 == 0
    checks = _judge(loss, "half masked", student, teacher, keep, **mask(keep))
    broken = [x.masked_fill(~keep[:, None], math.nan) for x in (student, teacher)]
    checks += _judge(loss, "masked rows of NaN", *broken, keep, **mask(keep))
    return checks + _judge(loss, "all masked", student, teacher, ~keep & keep, **mask(~keep & keep))


def _habits(loss: Loss, arguments: dict[str, Any], dtype: torch.dtype, seed: int, device) -> list[Check]:
    """The same bits twice, and another result for another value of each argument."""
    name = str(dtype).removeprefix("torch.")
    student, teacher = _draw(6, 33, dtype, seed, device)
    upstream = torch.ones(6, device=device)

    def bits(**given: Any) -> list[Tensor]:
        return list(loss.call(student.detach().clone().requires_grad_(), teacher, upstream, **given))

    checks = []
    for case, given in [("twice", {}), *((f"argument {key}", {key: value}) for key, value in arguments.items())]:
        try:
            equal = all(map(torch.equal, bits(), bits(**given)))
        except Exception as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            checks.append(Check(case, name, "call", math.inf, 0.0, line[:100]))
            continue
        good, note = (equal, "the second call differs") if not given else (not equal, "it changes nothing")
        checks.append(Check(case, name, "bits", 0.0 if good else math.inf, 0.0, "" if good else note))
    return checks
