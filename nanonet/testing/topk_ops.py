"""The raw ops of the loss against a teacher that is known by its likeliest classes, against float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nanonet import reference, reference_topk
from nanonet.reference import DEFAULT_BETA, DIVERGENCES, UNLABELLED
from nanonet.reference_topk import Tail
from nanonet.testing.check import pair_cases
from nanonet.testing.judge import check_bits, check_gradient, check_value, name_of
from nanonet.testing.loss_ops import WEIGHTS, Ops, draw_upstream, judge_loss, wide
from nanonet.testing.report import Check, Report, ended

# student (K,N,C), ids and logprobs (N,k), label or None; row_weight and denominators or None
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]
More = tuple[Tensor | None, Tensor | None]
TAILS = tuple(int(tail) for tail in Tail)


def check_topk_ops(
    ops: Ops,
    *,
    divergence: str,
    beta: float | None = None,
    temperature: float = 2.0,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    students: Sequence[int] = (1, 2, 4, 8),
    every_tail: bool = True,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Report:
    """Judge distill_topk_terms, its backward and distill_topk_loss, by their names in nanonet/schemas.py, as
    `check_loss_ops` judges the others; and that they refuse what is no distribution.

    Args:
        every_tail: False gives every case one treatment of the tail, another for each dtype.
        the rest: as `check_loss_ops`; mse has no top-k teacher.
    """
    options = temperature, DIVERGENCES[divergence], DEFAULT_BETA.get(divergence, 0.0) if beta is None else beta
    checks: list[Check] = []
    for i, dtype in enumerate(dtypes):
        for j, (name, inputs, more) in enumerate(_cases(dtype, temperature, students, seed, device)):
            if name == "student is teacher" and divergence == "tv":  # any slope from -1 to 1 is right there
                continue
            for tail in TAILS if every_tail else (TAILS[(i + j + options[1]) % len(TAILS)],):
                checks += _judge(ops, f"{name}, {Tail(tail).name.lower()}", inputs, more, tail, options)
        checks += _refusals(ops, dtype, options, device)
    return Report(tuple(checks), ())


def likeliest(teacher: Tensor, k: int, temperature: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """ids and logprobs (N,k) of teacher logits, in no order."""
    logprobs, ids = (teacher.double() / temperature).log_softmax(-1).topk(min(k, teacher.shape[-1]))
    order = torch.randperm(ids.shape[-1], generator=torch.Generator().manual_seed(3)).to(ids.device)
    return ids[:, order], logprobs[:, order].to(dtype).clamp_max(0)


def _cases(
    dtype: torch.dtype, temperature: float, students: Sequence[int], seed: int, device
) -> Iterator[tuple[str, Inputs, More]]:
    none: More = (None, None)
    for name, one, teacher in pair_cases(dtype, seed, device):
        label = torch.arange(len(one), device=device) % one.shape[1]
        label[1::3] = UNLABELLED
        student = torch.stack([one, one.roll(1, 0), one.flip(0)])
        yield name, (student, *likeliest(teacher, 8, temperature, dtype), label), none
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: (2 * torch.randn(*shape, generator=g, dtype=torch.float64)).to(device, dtype)  # noqa: E731
    N, C = 7, 33
    teacher, label = draw(N, C), torch.arange(N, device=device)
    label[::2] = UNLABELLED
    top = likeliest(teacher, 6, temperature, dtype)
    for K in students:
        yield f"{K} students", (draw(K, N, C), *top, label), none
    student = draw(3, N, C)
    yield "one class", (student, *likeliest(teacher, 1, temperature, dtype), label), none
    yield "every class", (student, *likeliest(teacher, C, temperature, dtype), label), none
    yield "no labels", (student, top[0].int(), top[1].float(), None), none
    turned = tuple(x.T.contiguous().T for x in top)
    yield "strided rows", (draw(3, N, C + 7)[..., 3 : C + 3], turned[0], turned[1], label), none
    ids, logprobs = top[0].clone(), top[1].clone()
    ids[3, 2:], logprobs[3, 2:], ids[4], logprobs[4] = -1, math.nan, -1, math.nan
    yield "rows of fewer classes", (student, ids, logprobs, label), none
    yield from _masses(student, top[0], label, dtype)
    row_weight = torch.arange(N, device=device) % 3 / 2
    own = (torch.arange(3 * N, device=device).view(3, N) % 4).float()
    yield "row weights of each", (student, *top, label), (own, None)
    yield "denominators", (student, *top, label), (row_weight, torch.tensor([3.0, 0.0], device=device))
    each = torch.tensor([[3.0, 4.0, 5.0], [7.0, 8.0, 0.0]], device=device)
    yield "denominators of each", (student, *top, label), (own, each)
    holes = row_weight == 0
    student, logprobs = student.masked_fill(holes[:, None], math.nan), top[1].masked_fill(holes[:, None], math.nan)
    unlabelled = torch.where(holes, UNLABELLED, label)
    yield "masked rows of NaN", (student, top[0], logprobs, unlabelled), (row_weight, None)
    long, student = draw(3, 2051), draw(2, 3, 2051)
    yield "several chunks", (student, *likeliest(long, 64, temperature, dtype), label[:3]), none


def _masses(student: Tensor, ids: Tensor, label: Tensor, dtype: torch.dtype) -> Iterator[tuple[str, Inputs, More]]:
    """Teachers whose tail has all the mass or none, and students who are as sure of it, or not at all."""
    k = ids.shape[-1]
    sure = student.scatter_add(-1, ids.expand(len(student), *ids.shape), torch.full_like(student[..., :k], 200))
    for mass in (1.0, 1e-6):
        logprobs = torch.full(ids.shape, math.log(mass / k), device=ids.device, dtype=torch.float64).to(dtype)
        yield f"a mass of {mass:g}", (student, ids, logprobs, label), (None, None)
        yield f"a mass of {mass:g}, sure", (sure, ids, logprobs, label), (None, None)


def _judge(ops: Ops, case: str, inputs: Inputs, more: More, tail: int, options: tuple) -> list[Check]:
    student, ids, logprobs, label = inputs
    dtype, known = student.dtype, (ids, logprobs, tail, label)
    own = reference_topk.distill_topk_terms(student, *known, *options)
    exact = reference_topk.distill_topk_terms(student.double(), *known, *options)
    upstream = draw_upstream(case, own)
    plain, truth = (
        reference_topk.topk_gradient(up, some, *known, *options)
        for up, some in ((upstream, student), (upstream.double(), student.double()))
    )
    weights = torch.tensor(WEIGHTS, dtype=own.dtype, device=own.device)
    given: tuple[Any, ...] = (weights, *more)
    losses = [
        reference_topk.distill_topk_loss(some, *known, *extra, *options)
        for some, extra in ((student, given), (student.double(), wide(*given)))
    ]
    checks: list[Check] = []
    if "distill_topk_terms" in ops:
        name = "distill_topk_terms"
        try:
            checks.append(check_value(case, dtype, name, ops[name](list(student), *known, *options), own, exact))
            name = "distill_topk_terms_backward"
            found, again = (ops[name](upstream, list(student), *known, *options) for _ in range(2))
            checks.append(
                check_gradient(case, dtype, name, found, plain, truth, upstream.abs().sum(0) * max(options[0], 1.0))
            )
            checks.append(check_bits(case, dtype, name, (found,), (again,)))
        except Exception as error:
            checks.append(ended(case, name_of(dtype), error, name))
    if "distill_topk_loss" in ops:
        call = partial(ops["distill_topk_loss"], list(student), *known, *given, *options)
        scale = torch.full_like(upstream[0], sum(WEIGHTS) / max(upstream.shape[2], 1))
        checks += judge_loss(case, dtype, "distill_topk_loss", call, losses, scale)
    return checks


def _refusals(ops: Ops, dtype: torch.dtype, options: tuple, device) -> Iterator[Check]:
    """Row 1 of 2 is no distribution: an error on a CPU, NaN on other devices, where looking would wait."""
    student = torch.zeros(2, 2, 9, dtype=dtype, device=device)
    rows = {
        "an id outside": ([2, 9], [-1.0, -2.0]),
        "an id below": ([-2, 1], [-1.0, -2.0]),
        "an id twice": ([3, 3], [-1.0, -2.0]),
        "a log p above 0": ([0, 1], [0.5, -9.0]),
        "a mass above 1": ([0, 1], [-0.1, -0.2]),
    }
    for case, (ids, logprobs) in rows.items():
        top = torch.tensor([[0, 1], ids], device=device), torch.tensor([[-1.0, -2.0], logprobs]).to(device, dtype)
        given = list(student), *top, int(Tail.BUCKET), None
        weights = torch.tensor(WEIGHTS, device=device).to(reference.wide(student).dtype)
        calls = {"distill_topk_terms": options, "distill_topk_loss": (weights, None, None, *options, True)}
        for name in calls.keys() & ops.keys():
            try:
                found = ops[name](*given, *calls[name])
            except ValueError:
                good = True
            except Exception as error:
                yield ended(case, name_of(dtype), error, name)
                continue
            else:
                marked = found[1, :, 1] if name == "distill_topk_terms" else found[1][1]
                good = student.device.type != "cpu" and bool(marked.isnan().all())
            note = "" if good else "a row that is no distribution was taken"
            yield Check(case, name_of(dtype), name, 0.0 if good else math.inf, 0.0, note)
