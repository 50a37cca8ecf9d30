"""The raw ops of the loss, for K students, through the rows that break naive formulas, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nanonet import reference
from nanonet.reference import DEFAULT_BETA, DIVERGENCES, UNLABELLED
from nanonet.testing.check import pair_cases
from nanonet.testing.judge import check_bits, check_gradient, check_value, name_of
from nanonet.testing.report import Check, Report, ended

Ops = Mapping[str, Callable[..., Any]]
Inputs = tuple[Tensor, Tensor | None, Tensor | None]
WEIGHTS = (0.7, 1.3, 0.5)


def check_loss_ops(
    ops: Ops,
    *,
    divergence: str,
    beta: float | None = None,
    temperature: float = 2.0,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    students: Sequence[int] = (1, 2, 4, 8),
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Report:
    """Judge functions with the signatures of nanonet/schemas.py, by the names that stand there: values, gradients under
    an upstream that is 0 in places, weighted and masked rows, and the same bits twice.

    Args:
        ops: what is judged; an op that is absent is left out.
        divergence, beta, temperature: as `nanonet.distill_terms`; mse is judged at temperature 1.
        students: the plain case is judged for every one of these K, the rest for 3 students.
    Returns:
        A report, whose `what` is the op. Nothing is raised for what an op does, its own errors included.
    Raises:
        KeyError: an unknown divergence.
    """
    code = DIVERGENCES[divergence]
    options = (1.0 if divergence == "mse" else temperature), code, DEFAULT_BETA.get(divergence, 0.0)
    options = options if beta is None else (*options[:2], beta)
    checks: list[Check] = []
    for dtype in dtypes:
        for name, inputs, more in _cases(dtype, students, seed, device):
            if not (name == "student is teacher" and divergence == "tv"):  # any slope from -1 to 1 is right there
                checks += _judge(ops, name, inputs, more, options)
    return Report(tuple(checks), ())


def _cases(
    dtype: torch.dtype, students: Sequence[int], seed: int, device
) -> Iterator[tuple[str, Inputs, tuple[Tensor | None, Tensor | None]]]:
    """Name; student (K,N,C), teacher and label or None; row_weight and denominators or None."""
    for name, one, teacher in pair_cases(dtype, seed, device):
        label = torch.arange(len(one), device=device) % one.shape[1]
        label[1::3] = UNLABELLED
        yield name, (torch.stack([one, one.roll(1, 0), one.flip(0)]), teacher, label), (None, None)
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: (2 * torch.randn(*shape, generator=g, dtype=torch.float64)).to(device, dtype)  # noqa: E731
    N, C = 7, 33
    teacher, label = draw(N, C), torch.arange(N, device=device)
    label[::2] = UNLABELLED
    for K in students:
        yield f"{K} students", (draw(K, N, C), teacher, label), (None, None)
    student = draw(3, N, C)
    yield "no teacher", (student, None, label), (None, None)
    yield "no labels", (student, teacher, None), (None, None)
    yield "peers alone", (student, None, None), (None, None)
    strided = draw(3, N, C + 7)[..., 3 : C + 3]
    yield "strided rows", (strided, teacher.T.contiguous().T, label), (None, None)
    row_weight = torch.arange(N, device=device) % 3 / 2
    own = (torch.arange(3 * N, device=device).view(3, N) % 4).float()
    yield "row weights", (student, teacher, label), (row_weight, None)
    yield "row weights of each", (student, teacher, label), (own, None)
    yield "denominators", (student, teacher, label), (row_weight, torch.tensor([3.0, 0.0], device=device))
    each = torch.tensor([[3.0, 4.0, 5.0], [7.0, 8.0, 0.0]], device=device)
    yield "denominators of each", (student, teacher, label), (own, each)


def wide(*given: Tensor | None) -> list[Any]:
    return [x.double() if x is not None and x.is_floating_point() else x for x in given]


def _judge(ops: Ops, case: str, inputs: Inputs, more: tuple, options: tuple) -> list[Check]:
    student, dtype = inputs[0], inputs[0].dtype
    exact_in = wide(*inputs)
    own, exact = (reference.distill_terms(*some, *options) for some in (inputs, exact_in))
    upstream = draw_upstream(case, own)
    slopes = [
        reference.row_gradient(up, *some, *options) for up, some in ((upstream, inputs), (upstream.double(), exact_in))
    ]
    weights = torch.tensor(WEIGHTS, dtype=own.dtype, device=own.device)
    given: tuple[Any, ...] = (weights, *more)
    losses = [
        reference.distill_loss(*some, *extra, *options) for some, extra in ((inputs, given), (exact_in, wide(*given)))
    ]
    # a gradient is judged relative to the slopes of its row, but not below a share of what it is a difference of, which
    # is as large as the upstream and the temperature
    scale = (
        upstream.abs().sum(0) * max(options[0], 1.0),
        torch.full_like(upstream[0], sum(WEIGHTS) / max(student.shape[1], 1)),
    )
    checks: list[Check] = []
    for end, first in (("", student), ("_each", list(student))):
        name, op = f"distill_terms{end}", ops.get(f"distill_terms{end}")
        if op is None:
            continue
        try:
            terms, stats = op(first, *inputs[1:], *options)
            checks.append(check_value(case, dtype, name, terms, own, exact))
            backward = ops[f"{name}_backward"]
            found = backward(upstream, first, *inputs[1:], stats, *options)
            checks.append(check_gradient(case, dtype, f"{name}_backward", found, slopes[0], slopes[1], scale[0]))
            again = backward(upstream, first, *inputs[1:], stats, *options)
            checks.append(check_bits(case, dtype, f"{name}_backward", (found,), (again,)))
        except Exception as error:
            checks.append(ended(case, name_of(dtype), error, name))
    for end, first in (("", student), ("_each", list(student))):
        name, op = f"distill_loss{end}", ops.get(f"distill_loss{end}")
        if op is not None:
            call = partial(op, first, *inputs[1:], weights, *more, *options)
            checks += judge_loss(case, dtype, name, call, losses, scale[1])
    return checks + _in_place(ops, case, inputs, (weights, *more, *options), losses, scale[1])


def draw_upstream(case: str, terms: Tensor) -> Tensor:
    """(3,K,N), 0 in places."""
    g = torch.Generator().manual_seed(sum(case.encode()))
    upstream = torch.randn(terms.shape, generator=g, dtype=torch.float64).to(terms)
    upstream[:, :, 2::5] = 0
    return upstream


def judge_loss(case: str, dtype: torch.dtype, name: str, call: Callable[[bool], Any], losses, scale) -> list[Check]:
    """Loss, means and gradient of call(need_grad), twice, and the first two without a gradient; losses: the same in
    the dtype, and in float64."""
    plain, exact = losses
    try:
        found, again, alone = call(True), call(True), call(False)
        checks = [
            check_value(case, dtype, name, some[i], plain[i], exact[i]) for some in (found, alone) for i in (0, 1)
        ]
        checks.append(check_gradient(case, dtype, name, found[2], plain[2], exact[2], scale))
        return [*checks, check_bits(case, dtype, name, found, again)]
    except Exception as error:
        return [ended(case, name_of(dtype), error, name)]


def _in_place(ops: Ops, case: str, inputs: Inputs, rest: tuple, losses, scale) -> list[Check]:
    """distill_loss_into_ into memory of NaN, and distill_scale_."""
    checks, dtype = [], inputs[0].dtype
    if "distill_loss_into_" in ops:
        room = torch.full(inputs[0].shape, math.nan, dtype=dtype, device=inputs[0].device)
        try:
            ops["distill_loss_into_"](room, *inputs, *rest)
            checks.append(check_gradient(case, dtype, "distill_loss_into_", room, losses[0][2], losses[1][2], scale))
        except Exception as error:
            checks.append(ended(case, name_of(dtype), error, "distill_loss_into_"))
    if "distill_scale_" in ops:
        scaled = inputs[0].nan_to_num(0, 0, 0).contiguous().clone()
        factor = torch.tensor(0.3, device=scaled.device, dtype=torch.promote_types(scaled.dtype, torch.float32))
        exact, plain = scaled.double() * factor.double(), (scaled * factor).to(scaled.dtype)
        try:
            ops["distill_scale_"](scaled, factor)
            checks.append(check_gradient(case, dtype, "distill_scale_", scaled, plain, exact, torch.ones_like(scale)))
        except Exception as error:
            checks.append(ended(case, name_of(dtype), error, "distill_scale_"))
    return checks
