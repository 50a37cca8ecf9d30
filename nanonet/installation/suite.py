"""One part of the check, which may hang or die: `python -m nanonet.installation.suite KERNELS DEVICE`.

Prints JSON lines: {"step": what begins} and {"op", "dtype", "checks", "worst", "failures"} for what has ended; worst is
the largest error as a share of its bar, null where it is infinite.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from nanonet import TopK, cohort_linear, distill_linear_loss, distill_loss, distill_terms
from nanonet.backends import gate, triton
from nanonet.ops.topk import TAILS
from nanonet.reference import DIVERGENCES
from nanonet.schemas import SCHEMAS
from nanonet.testing import (
    Check,
    Report,
    check_cohort_linear,
    check_distillation,
    check_linear_loss,
    check_loss_ops,
    check_topk_ops,
)

CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
GPU_DTYPES = CPU_DTYPES[:3]  # the reference serves float64 there
Step = tuple[str, Callable[[], Report]]


def steps(kernels: str, device: torch.device, public: bool) -> Iterator[Step]:
    """What is judged, by name. `public`: the public functions and the linear layer too, which kernels of one
    instruction set do not differ in."""
    ops = {name: getattr(torch.ops.nanonet, name).default for name in SCHEMAS if name.startswith("distill")}
    for i, divergence in enumerate(DIVERGENCES):
        # Triton compiles a kernel for every dtype and divergence: all dtypes with kl, else they take turns
        some = GPU_DTYPES if divergence == "kl" else (GPU_DTYPES[i % 3],)
        students = (1, 2, 4, 8) if divergence == "kl" else ()
        options: dict[str, Any] = {"divergence": divergence, "device": device}
        options |= {"dtypes": some, "students": students} if device.type == "cuda" else {"dtypes": CPU_DTYPES}
        yield f"the loss, {divergence}", partial(check_loss_ops, ops, **options)
        if divergence != "mse" and kernels != gate.CUDA:  # which has none for these ops
            every = divergence == "kl" and public  # else pairs of dtype and tail take turns
            topk: dict[str, Any] = {"divergence": divergence, "device": device, "every_tail": every}
            topk["dtypes"] = CPU_DTYPES if every else (CPU_DTYPES[0], CPU_DTYPES[1 + i % 3])
            yield f"TopK, {divergence}", partial(check_topk_ops, ops, **topk)
    if not public:
        return
    dtypes = GPU_DTYPES if device.type == "cuda" else CPU_DTYPES
    for i, divergence in enumerate(DIVERGENCES if device.type == "cpu" else ("kl", "js")):
        yield f"distill_terms, {divergence}", partial(_terms, divergence, device)
        yield f"distill_loss, {divergence}", partial(_loss, divergence, device)
        yield (
            f"distill_linear_loss, {divergence}",
            partial(linear_loss, divergence, (dtypes[0], dtypes[1 + i % (len(dtypes) - 1)]), device),
        )
    if kernels != gate.CUDA:  # it has none for this op
        yield "cohort_linear", partial(check_cohort_linear, cohort_linear, dtypes=dtypes, device=device)


def _terms(divergence: str, device: torch.device) -> Report:
    def rows(student, teacher):
        return distill_terms([teacher, student], teacher, divergence=divergence)[1, 1]

    return _named("distill_terms", check_distillation(rows, divergence=divergence, device=device))


def _loss(divergence: str, device: torch.device) -> Report:
    def loss(student, teacher, keep=None):
        options: dict[str, Any] = {"row_weight": keep, "divergence": divergence}
        return distill_loss(student, teacher, weights=(0.0, 1.0, 0.0), **options)[0]

    report = check_distillation(
        loss, divergence=divergence, reduction="mean", mask=lambda keep: {"keep": keep}, device=device
    )
    return _named("distill_loss", report)


def linear_loss(divergence: str, dtypes: Sequence[torch.dtype], device: torch.device) -> Report:
    tails = {number: tail for tail, number in TAILS.items()}

    def make(ids, logprobs, tail):
        return TopK(ids, logprobs, tails[tail])

    given: dict[str, Any] = {"divergence": divergence, "dtypes": dtypes, "device": device}
    return check_linear_loss(distill_linear_loss, make_topk=make, **given)


def _named(op: str, report: Report) -> Report:
    """The public function's own lines under its name."""
    return Report(tuple(Check(c.case, c.dtype, f"{op}()", c.error, c.bar, c.note) for c in report.checks), ())


def rows_of(step: str, report: Report) -> Iterator[dict[str, Any]]:
    """The lines of a report: one for each op and dtype."""
    groups: dict[tuple[str, str], list[Check]] = defaultdict(list)
    for check in report.checks:
        linear = step == "cohort_linear"
        groups["cohort_linear" if linear else check.what, check.dtype].append(check)
    for (op, dtype), checks in groups.items():
        worst = max(math.inf if math.isnan(c.error) else c.error / c.bar if c.bar else c.error for c in checks)
        failures = [f"{step}: {' '.join(str(check).split())}" for check in checks if not check.passed]
        finite = worst if math.isfinite(worst) else None
        yield {"op": op, "dtype": dtype, "checks": len(checks), "worst": finite, "failures": failures}


def main(kernels: str, device: str, public: bool) -> None:
    torch.set_num_threads(1)
    where = torch.device(device)
    if where.type == "cuda":
        gate.only(kernels)
        triton.HOST_BOUND = 0  # small layers by the kernels too
        torch.zeros(1, device=where).item()  # a GPU that is busy or broken ends the part before it has begun
    for step, judge in steps(kernels, where, public):
        print(json.dumps({"step": step}), flush=True)
        for row in rows_of(step, judge()):
            print(json.dumps(row), flush=True)
    print(json.dumps({"step": ""}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "public")
