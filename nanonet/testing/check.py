"""The cases that a loss is put through."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nanonet.testing.judge import Loss, judge, make_loss
from nanonet.testing.report import Check, Report, ended


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
    loss = make_loss(fn, divergence, beta, temperature, tau_squared, reduction)
    checks = []
    for dtype in dtypes:
        for name, student, teacher in pair_cases(dtype, seed, device):
            checks += judge(loss, name, student, teacher)
        checks += _layouts(loss, dtype, seed, device)
        if mask is not None:
            checks += _masks(loss, mask, dtype, seed, device)
        checks += _habits(loss, dict(arguments or {}), dtype, seed, device)
    known = set(arguments or {}) | set(mask(torch.ones(1, dtype=torch.bool, device=device)) if mask else ())
    parameters = list(inspect.signature(fn).parameters.values())[2:]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return Report(tuple(checks), tuple(p.name for p in parameters if p.kind in kinds and p.name not in known))


def _draw(N: int, C: int, dtype: torch.dtype, seed: int, device, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(2, N, C, generator=g, dtype=torch.float64)).to(device, dtype)
    return student, teacher


def pair_cases(dtype: torch.dtype, seed: int, device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, student, teacher: plain shapes, then the rows that break naive formulas."""
    for N, C in ((1, 4), (3, 1), (5, 33), (8, 1000)):
        yield f"{N} x {C}", *_draw(N, C, dtype, seed, device)
    student, teacher = _draw(8, 4096, dtype, seed, device)
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


def _layouts(loss: Loss, dtype: torch.dtype, seed: int, device) -> list[Check]:
    student, teacher = _draw(5, 40, dtype, seed, device)
    turned = teacher.T.contiguous().T
    return judge(loss, "strided rows", student, teacher[:, :33]) + judge(loss, "turned", student, turned)


def _masks(loss: Loss, mask: Callable[[Tensor], Mapping[str, Any]], dtype, seed, device) -> list[Check]:
    student, teacher = _draw(6, 33, dtype, seed, device)
    keep = torch.arange(6, device=device) % 2 == 0
    checks = judge(loss, "half masked", student, teacher, keep, mask)
    holes = [x.masked_fill(~keep[:, None], math.nan) for x in (student, teacher)]
    checks += judge(loss, "masked rows of NaN", holes[0], holes[1], keep, mask)
    return checks + judge(loss, "all masked", student, teacher, torch.zeros_like(keep), mask)


def _habits(loss: Loss, arguments: dict[str, Any], dtype: torch.dtype, seed: int, device) -> list[Check]:
    """The same bits twice, from two calls and from two backwards; another result for another value of each argument."""
    name = str(dtype).removeprefix("torch.")
    student, teacher = _draw(6, 33, dtype, seed, device)
    upstream = torch.ones(6, device=device)

    def bits(times: int = 1, **given: Any) -> list[Tensor]:
        return loss.call(student.detach().clone().requires_grad_(), teacher, upstream, given, times)

    def again() -> bool:
        _, first, second = bits(2)
        return torch.equal(first, second)

    def differs(key: str) -> bool:
        return not all(map(torch.equal, bits(), bits(**{key: arguments[key]})))

    cases: dict[str, tuple[Callable[[], bool], str]] = {
        "called twice": (lambda: all(map(torch.equal, bits(), bits())), "the second call differs"),
        "backward twice": (again, "another gradient from the same graph"),
    }
    cases |= {f"argument {key}": (partial(differs, key), "it changes nothing") for key in arguments}
    checks = []
    for case, (holds, note) in cases.items():
        try:
            good = holds()
        except Exception as error:
            checks.append(ended(case, name, error))
            continue
        checks.append(Check(case, name, "bits", 0.0 if good else math.inf, 0.0, "" if good else note))
    return checks
