"""Swapped in: our names for other projects' losses against their own eager forms, forward and backward, one thread.

The forms are written here from the formulas, each step in the dtype that the project takes it in. Each table is one
call site: `nanonet` is what `nanonet.compat` puts there, `distill_loss` the op by itself, then the project's form and
torch.compile of it. `must` is the least ratio to reach, or with "at most" the largest; where it says "at most",
`nanonet` is what the time is counted in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanonet import cohort_linear, distill_loss, reference
from nanonet.benchmarks import bench_distill, bench_linear
from nanonet.benchmarks.measure import record, small_times_ms, times_ms
from nanonet.compat import speculators, torchtune, trl
from nanonet.device import threads
from nanonet.errors import InputError

DTYPES = bench_distill.DTYPES
ROWS, CLASSES = 512, 32000
FRESH = 2, 256, 30522  # K, N, C of the gradient buffers
LORA = 2048, 1024, 1024, 16  # M, D, F, R
SECONDS = 3.0  # of each implementation
ROWS_CHECKED = 32


def trl_jsd(student: Tensor, teacher: Tensor, labels: Tensor | None = None, beta: float = 0.5) -> Tensor:
    """In the logits' dtype: KL(p, q) at beta 0, else a log-mixture and two kl_divs; over the number of rows that have a
    label, or of sequences."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    if beta == 0:
        each = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    else:
        b = torch.tensor(beta, dtype=log_q.dtype)
        log_m = torch.logsumexp(torch.stack([log_q + torch.log1p(-b), log_p + b.log()]), dim=0)
        from_p, from_q = (F.kl_div(log_m, x, reduction="none", log_target=True) for x in (log_p, log_q))
        each = b * from_p + (1 - b) * from_q
    if labels is None:
        return each.sum() / len(student)
    counted = labels != -100
    return each[counted].sum() / counted.sum().clamp_min(1)


def speculators_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """In float32, the mean over positions of a sum of kl_div."""
    p, log_q = teacher.softmax(-1, dtype=torch.float32), student.log_softmax(-1, dtype=torch.float32)
    return F.kl_div(log_q, p, reduction="none").sum(-1).mean()


def speculators_tv(student: Tensor, teacher: Tensor) -> Tensor:
    """In float32, one less the overlap."""
    p, q = (x.softmax(-1, dtype=torch.float32) for x in (teacher, student))
    return (1 - torch.minimum(p, q).sum(-1)).mean()


def torchtune_forward(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """In float32: -sum p log q where the student is finite, over the rows with a label."""
    p, log_q = teacher.softmax(-1, dtype=torch.float32), student.log_softmax(-1, dtype=torch.float32)
    rows, counted = (p * log_q).masked_fill(student.isinf(), 0).sum(-1), labels != -100
    return -(rows * counted).sum() / counted.sum()


def torchtune_reverse(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """In float32: sum q (log q - log p) where both are finite."""
    q, log_q = student.softmax(-1, dtype=torch.float32), student.log_softmax(-1, dtype=torch.float32)
    log_p, absent = teacher.log_softmax(-1, dtype=torch.float32), student.isinf() | teacher.isinf()
    each, counted = (q * log_q).masked_fill(absent, 0) - (q * log_p).masked_fill(absent, 0), labels != -100
    return (each.sum(-1) * counted).sum() / counted.sum()


def torchtune_symmetric(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return (torchtune_forward(student, teacher, labels) + torchtune_reverse(student, teacher, labels)) / 2


def per_position(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As speculators calls its losses: (1,T,V), then a mean."""
    return lambda student, teacher: loss(student[None], teacher[None]).mean()


def op(student: Tensor, teacher: Tensor, divergence: str, beta: float | None = None) -> Tensor:
    return distill_loss(student, teacher, weights=(0.0, 1.0, 0.0), divergence=divergence, beta=beta)[0]


@dataclass(frozen=True)
class Site:
    """A call site: what takes its place, whose form stands there, and how many times faster ours has to be."""

    name: str
    ours: Callable[..., Tensor]
    peer: str
    theirs: Callable[..., Tensor]
    must: float
    divergence: str
    beta: float | None = None
    labelled: bool = False


GKD = trl.generalized_jsd_loss
SITES = (
    Site("kl", partial(GKD, beta=0), "trl", partial(trl_jsd, beta=0), 12, "kl"),
    Site("kl", per_position(speculators.kl_div_loss), "speculators", speculators_kl, 12, "kl"),
    Site("js 0.25", partial(GKD, beta=0.25), "trl", partial(trl_jsd, beta=0.25), 15, "js", 0.25),
    Site("tv", per_position(speculators.tv_loss), "speculators", speculators_tv, 8, "tv"),
    Site("symmetric_kl", torchtune.SymmetricKLLoss(), "torchtune", torchtune_symmetric, 10, "symmetric_kl", 0.5, True),
    Site("cross_entropy", torchtune.ForwardKLLoss(), "torchtune", torchtune_forward, 10, "cross_entropy", None, True),
)
COMPILED_MUST = 5
Runs = dict[str, Callable[[], Any]]
# what a table is: op, sizes, the runs, {run: what it must reach}, (error of ours, of the peer's form)
Table = tuple[str, dict[str, int], Runs, dict[str, str], tuple[float, float] | None]


def draw(*shape: int, dtype: torch.dtype) -> list[Tensor]:
    """Student and teacher."""
    g = torch.Generator().manual_seed(0)
    return [(2 * torch.randn(*shape, generator=g)).to(dtype) for _ in range(2)]


def with_backward(loss: Callable[..., Tensor], student: Tensor, *others: Tensor) -> Callable[[], Any]:
    return bench_distill.with_backward(loss, student, *others, in_leaf=False)


def gradient_error(site: Site, loss: Callable[..., Tensor], student: Tensor, *others: Tensor) -> float:
    """|gradient - exact| / |exact| of some rows, exact by the definition in float64."""
    rows = [x[:ROWS_CHECKED] for x in (student, *others)]
    found = with_backward(loss, *rows)().double()
    number, beta = reference.DIVERGENCES[site.divergence], 0.5 if site.beta is None else site.beta
    upstream = torch.zeros(3, 1, len(rows[0]), dtype=torch.float64)
    upstream[1] = 1 / len(rows[0])
    exact = reference.row_gradient(upstream, rows[0][None].double(), rows[1].double(), None, 1.0, number, beta)[0]
    return ((found - exact).norm() / exact.norm()).item()


def losses(dtype: torch.dtype, compiled: bool) -> Iterator[Table]:
    """Every site."""
    N, C = ROWS, CLASSES
    student, teacher = draw(N, C, dtype=dtype)
    for site in SITES:
        given = (student, teacher, torch.zeros(N, dtype=torch.int64)) if site.labelled else (student, teacher)
        error, own = (gradient_error(site, loss, *given) for loss in (site.ours, site.theirs))
        if not error <= 2 * own + (1e-5 if dtype == torch.float32 else 4e-3):
            raise InputError(f"{site.name} is wrong by {error:.3g} ({site.peer}: {own:.3g}): not timed")
        alone = partial(op, divergence=site.divergence, beta=site.beta)
        runs = {"nanonet": with_backward(site.ours, *given), "distill_loss": with_backward(alone, student, teacher)}
        runs[site.peer] = with_backward(site.theirs, *given)
        must = {site.peer: f"{site.must}x"}
        if compiled:
            torch._dynamo.reset()
            name = f"{site.peer} compiled"
            runs[name] = with_backward(torch.compile(site.theirs, fullgraph=True, dynamic=False), *given)
            must[name] = f"{COMPILED_MUST}x"
        yield f"{site.peer}'s {site.name}", {"N": N, "C": C}, runs, must, (error, own)


def others(dtype: torch.dtype) -> Iterator[Table]:
    """Hard labels, TRL's slice, a fresh gradient, few classes, and a LoRA layer."""
    N, C = ROWS, CLASSES
    student, teacher = draw(N, C, dtype=dtype)
    label = torch.randint(0, C, (N,), generator=torch.Generator().manual_seed(1))
    runs = {"nanonet": with_backward(lambda s: distill_loss(s, None, label, weights=(1.0, 0.0, 0.0))[0], student)}
    runs["F.cross_entropy"] = with_backward(lambda s: F.cross_entropy(s, label), student)
    yield "hard labels", {"N": N, "C": C}, runs, {"F.cross_entropy": "2x"}, None
    if dtype == torch.float32:
        student, teacher = draw(4, N // 4 + 1, C, dtype=dtype)
        labels = torch.zeros(student.shape[:2], dtype=torch.int64)
        forms = {"nanonet": GKD, "trl": trl_jsd}
        runs = {
            name: with_backward(lambda s, form=form: form(s[:, :-1], teacher[:, :-1], labels[:, 1:]), student)
            for name, form in forms.items()
        }
        yield "trl's js 0.5 of logits[:, :-1]", dict(zip("BTV", student.shape, strict=True)), runs, {"trl": "20x"}, None
    K, N, C = FRESH
    inputs = bench_distill.setup(K, N, C, dtype)
    runs = {"nanonet": bench_distill.op_reused(*inputs), "fresh gradient": with_backward(bench_distill.ours, *inputs)}
    must = {"fresh gradient": "at most 1.5x"}
    yield "gradient buffer, the reused one's time", {"K": K, "N": N, "C": C}, runs, must, None
    inputs = bench_distill.setup(2, 32, 4, dtype)
    runs = {"nanonet": with_backward(lambda s, *_: s.sum(), *inputs)}
    runs["distill_loss"] = with_backward(bench_distill.ours, *inputs)
    must = {"distill_loss": "at most 2.4x"}
    yield "few classes, in sum().backward()s", {"K": 2, "N": 32, "C": 4}, runs, must, None
    yield lora(dtype)


def lora(dtype: torch.dtype) -> Table:
    """One layer with an adapter: W x + s B (A x)."""
    M, D, out, R = LORA
    x, weight, _, a, b = bench_linear.setup(1, M, D, out, R, dtype, "cpu", False, True)
    dy = torch.randn(1, M, out, generator=torch.Generator().manual_seed(1)).to(dtype)
    scale = torch.full((1,), 2.0, dtype=dtype)
    leaves = [t.detach().requires_grad_() for t in (x, a, b) if t is not None]

    def ours(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return cohort_linear(x, weight, None, a, b, scale)

    def peft(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return F.linear(x, weight) + F.linear(F.linear(x, a[0]), b[0]) * 2.0

    calls = {"nanonet": ours, "peft's formula": peft}
    runs: Runs = {name: partial(both, call, leaves, dy) for name, call in calls.items()}
    must = {"peft's formula": "1.15x" if dtype == torch.float32 else "1x"}
    return "cohort_linear, one LoRA layer", {"M": M, "D": D, "F": out, "R": R}, runs, must, None


def both(call: Callable[..., Tensor], leaves: list[Tensor], dy: Tensor) -> Any:
    return torch.autograd.grad(call(*leaves), leaves, dy)


def records(dtypes: tuple = tuple(DTYPES), compiled: bool = True) -> Iterator[dict[str, Any]]:
    """One record for each table and implementation.

    Raises:
        InputError: ours is wrong at some site: it is not timed.
    """
    with threads(1):
        for name in dtypes:
            dtype = DTYPES[name]
            for tables in (losses(dtype, compiled), others(dtype)):
                for op_name, shape, runs, must, errors in tables:
                    clock = small_times_ms if shape.get("C") == 4 else partial(times_ms, seconds=SECONDS)
                    for run, values in clock(runs).items():
                        error, own = (None, None) if errors is None else errors
                        own_error = error if run in ("nanonet", "distill_loss") else None
                        line = record(op_name, shape, name, "cpu", run, values, error=own_error, reference_error=own)
                        yield {**line, "must": must.get(run)}
