"""The raw ops of a TopK teacher, for K students, through its tails and the rows that break naive formulas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nanonet import reference_topk
from nanonet.reference import DEFAULT_BETA, DIVERGENCES, UNLABELLED
from nanonet.reference_topk import Tail
from nanonet.testing.judge import ALLOWED, gradient_error, value_error
from nanonet.testing.loss_ops import WEIGHTS, Ops, _bits, _wide
from nanonet.testing.report import Check, Report, ended

Given = tuple[Tensor, Tensor, Tensor, Tensor | None]


def check_topk_ops(
    ops: Ops,
    *,
    divergence: str,
    beta: float | None = None,
    temperature: float = 2.0,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Report:
    """As `check_loss_ops`, of distill_topk_terms, distill_topk_terms_backward and distill_topk_loss, with every tail.

    Raises:
        KeyError: an unknown divergence, or mse, which has no TopK teacher.
    """
    codes = {name: number for name, number in DIVERGENCES.items() if name != "mse"}
    options = temperature, codes[divergence], DEFAULT_BETA.get(divergence, 0.0) if beta is None else beta
    checks: list[Check] = []
    for dtype in dtypes:
        for case, given, row_weight in _cases(dtype, seed, device):
            for tail in Tail:
                checks += _judge(ops, f"{case}, {tail.name}", given, int(tail), row_weight, options)
    return Report(tuple(checks), ())


def _cases(dtype: torch.dtype, seed: int, device) -> Iterator[tuple[str, Given, Tensor | None]]:
    """Name; student (K,N,C), ids and logprobs (N,k), label or None; row_weight or None."""
    g = torch.Generator().manual_seed(seed)

    def draw(K: int, N: int, C: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        student, teacher = (2 * torch.randn(*shape, generator=g).double() for shape in ((K, N, C), (N, C)))
        logprobs, ids = teacher.log_softmax(-1).topk(k)
        order = torch.randperm(k, generator=g)
        label = torch.arange(N) % C
        label[1::3] = UNLABELLED
        logprobs = logprobs[:, order].float().clamp_max(0)
        return student.to(device, dtype), ids[:, order].to(device), logprobs.to(device), label.to(device)

    yield "one class of one student", (*draw(1, 3, 9, 1)[:3], None), None
    yield "all classes", draw(2, 3, 8, 8), None
    yield "long rows", draw(3, 4, 2051, 20), None
    student, ids, logprobs, label = draw(2, 6, 40, 6)
    ids[1, 4:], ids[2] = -1, -1
    student[:, 3, 30:] = -torch.inf
    student[:, 4].scatter_add_(-1, ids[4].expand(2, 6), torch.full((2, 6), 60.0, device=device).to(dtype))
    own = (torch.arange(12, device=device).view(2, 6) % 4).float()
    yield "fewer classes, sure students, row weights", (student, ids, logprobs, label), own


def _judge(ops: Ops, case: str, given: Given, tail: int, row_weight, options: tuple) -> list[Check]:
    student, ids, logprobs, label = given
    dtype = str(student.dtype).removeprefix("torch.")
    inputs, teacher = (student, ids, logprobs, tail, label), (list(student), ids, logprobs, tail, label)
    exact_in = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs]
    own, exact = (reference_topk.distill_topk_terms(*some, *options) for some in (inputs, exact_in))
    g = torch.Generator().manual_seed(sum(case.encode()))
    upstream = torch.randn(own.shape, generator=g, dtype=torch.float64).to(own)
    upstream[:, :, 2::5] = 0
    slopes = [reference_topk.topk_gradient(upstream.to(exact), *some, *options) for some in (inputs, exact_in)]
    weighing: tuple[Any, ...] = torch.tensor(WEIGHTS, dtype=own.dtype, device=own.device), row_weight, None
    losses = [
        reference_topk.distill_topk_loss(*some, *more, *options)
        for some, more in ((inputs, weighing), (exact_in, _wide(*weighing)))
    ]
    scale = upstream.abs().sum(0), torch.full_like(upstream[0], sum(WEIGHTS) / student.shape[1])
    value_bar, gradient_bar = ALLOWED[student.dtype][:2]
    checks: list[Check] = []

    def judge(what: str, found: Tensor, plain: Tensor, truth: Tensor, size: Tensor | None = None) -> None:
        error = value_error if size is None else lambda a, b: gradient_error(a, b, size)
        bar = 2 * error(plain, truth) + (value_bar if size is None else gradient_bar)
        checks.append(Check(case, dtype, what, error(found, truth), bar))

    try:
        judge("distill_topk_terms", ops["distill_topk_terms"](*teacher, *options), own, exact)
        backward = ops["distill_topk_terms_backward"]
        found, again = (backward(upstream, *teacher, *options) for _ in range(2))
        judge("distill_topk_terms_backward", found, slopes[0], slopes[1], scale[0])
        checks.append(_bits(case, dtype, "distill_topk_terms_backward", (found,), (again,)))
        results = [ops["distill_topk_loss"](*teacher, *weighing, *options, True) for _ in range(2)]
        for i in range(3):
            judge("distill_topk_loss", results[0][i], losses[0][i], losses[1][i], scale[1] if i == 2 else None)
        checks.append(_bits(case, dtype, "distill_topk_loss", *results))
    except Exception as error:
        checks.append(ended(case, dtype, error, "distill_topk_loss"))
    return checks
