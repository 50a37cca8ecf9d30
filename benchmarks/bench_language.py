"""TopK teachers and hidden states against the eager forms that other projects have, forward and backward, one thread.

`--topk`: gather and logsumexp in float32; our own loss of dense teacher logits. `--from-hidden`: the forms of
hidden_peers.py, and the products of our own pass alone; K students in one call and in K. `must` is the least ratio of
times, or with "at most" of nanonet's time over that row's; `error` is the largest of the gradients'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanonet import TopK, distill_linear_loss, distill_loss, reference
from nanonet.benchmarks import bench_distill, hidden_peers
from nanonet.benchmarks.hidden_peers import Gradients
from nanonet.benchmarks.measure import peak_mb, record, times_ms
from nanonet.device import threads
from nanonet.errors import InputError
from nanonet.ops.linear_products import Gradients as Sums
from nanonet.ops.linear_products import Heads, chunk_rows

DTYPES = bench_distill.DTYPES
TOPK = 512, 128256, 64  # N, C, k
HIDDEN = 1024, 512, 32000  # N, D, V
STUDENTS = 4
ROWS_CHECKED = 128
SECONDS = 6.0
ONLY_TEACHER = (0.0, 1.0, 0.0)
Runs = dict[str, Callable[[], Any]]


def eager_topk(student: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    """Mean KL over the k classes and the tail, its mass at least 1e-7."""
    x = student.float()
    log_q = x.gather(-1, ids) - x.logsumexp(-1, keepdim=True)
    tails = [torch.log(-torch.expm1(y.logsumexp(-1, keepdim=True).clamp(max=-1e-7))) for y in (logprobs, log_q)]
    p, q = torch.cat([logprobs, tails[0]], -1), torch.cat([log_q, tails[1]], -1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()


def exact_hidden(given: list[Tensor], beta: float) -> list[Tensor]:
    """The gradients of x and weight in float64, of all logits at once."""
    x, weight, t, teacher_weight = given
    leaves = [y.detach().double().requires_grad_() for y in (x, weight)]
    log_q, log_p = (leaves[0] @ leaves[1].T).log_softmax(-1), (t.double() @ teacher_weight.double().T).log_softmax(-1)
    number = reference.DIVERGENCES["js" if beta else "kl"]
    loss = reference.divergence_value(log_p, log_q, number, beta).sum() / len(x)
    return list(torch.autograd.grad(loss, leaves))


def ours_hidden(x: Tensor, weight: Tensor, t: Tensor, teacher_weight: Tensor, beta: float) -> Gradients:
    leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
    options: dict[str, Any] = dict(divergence="js", beta=beta) if beta else {}
    loss, _ = distill_linear_loss(*leaves, t, teacher_weight, weights=ONLY_TEACHER, **options)
    return loss.detach(), list(torch.autograd.grad(loss, leaves))


def products(x: Tensor, weight: Tensor, t: Tensor, teacher_weight: Tensor) -> None:
    """The products of our pass, in its chunks, without a loss."""
    heads, low = Heads([x], [weight], []), x.dtype == torch.bfloat16
    rows = chunk_rows(heads, True, False)
    logits, dlogits = torch.zeros(2, 1, min(rows, len(x)), len(weight))
    sums = Sums(heads, (True, True, False), torch.float32, rows)
    for begin in range(0, len(x), rows):
        part = x[begin : begin + rows]
        for one, w in ((part, weight), (t[begin : begin + rows], teacher_weight)):
            torch.ops.nanonet.project_into_(logits[0, : len(part)], one, w, None)
        sums.add(dlogits[:, : len(part)], placed=not low)
    sums.finished()


def error_of(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest |gradient - exact| / |exact|."""
    pairs = zip(found, exact, strict=True)
    return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs)


def draw(*shape: int, dtype: torch.dtype, scale: float = 1.0, seed: int = 0) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def topk(name: str) -> Iterator[dict[str, Any]]:
    N, C, k = TOPK
    student, teacher = (draw(N, C, dtype=DTYPES[name], seed=seed, scale=2.0) for seed in (0, 1))
    logprobs, ids = teacher.float().log_softmax(-1).topk(k)
    known = TopK(ids, logprobs)

    def ours(s: Tensor, given: Tensor | TopK) -> Tensor:
        return distill_loss(s, given, weights=ONLY_TEACHER)[0]

    def gradient(loss: Callable[..., Tensor], *given: Any) -> Any:
        leaf = student.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf, *given), leaf)[0]

    runs: Runs = {"nanonet": partial(gradient, ours, known), "dense teacher": partial(gradient, ours, teacher)}
    runs["gather + logsumexp"] = partial(gradient, eager_topk, ids, logprobs)
    rows = student[:8].double().requires_grad_()
    (exact,) = torch.autograd.grad(ours(rows, TopK(ids[:8], logprobs[:8].double())) * 8 / N, rows)
    errors = {run: error_of([runs[run]()[:8]], [exact]) for run in ("nanonet", "gather + logsumexp")}
    must = {"gather + logsumexp": "5x", "dense teacher": "1.33x"}
    yield from _lines("TopK kl", {"N": N, "C": C, "k": k}, name, runs, errors, must)


def from_hidden(name: str) -> Iterator[dict[str, Any]]:
    N, D, V = HIDDEN
    dtype = DTYPES[name]
    given = inputs(N, D, V, dtype)
    few = [y[: min(N, ROWS_CHECKED)] if i % 2 == 0 else y for i, y in enumerate(given)]
    forms = {"nanonet": ours_hidden, "liger": hidden_peers.liger, "trl": hidden_peers.trl}
    for beta in (0.0, 0.5):
        runs: Runs = {run: partial(form, *given, beta) for run, form in forms.items()}
        exact = exact_hidden(few, beta)
        errors = {run: error_of(form(*few, beta)[1], exact) for run, form in forms.items()}
        runs["products alone"] = partial(products, *given)
        must = {"liger": "5x", "trl": "5x", "products alone": "at most 1.3x"}
        op = f"distill_linear_loss {'js 0.5' if beta else 'kl'}"
        yield from _lines(op, {"N": N, "D": D, "V": V}, name, runs, errors, must)
    x, weight, t, teacher_weight = given
    stack = torch.stack([draw(N // 4, D, dtype=dtype, seed=10 + k) for k in range(STUDENTS)])
    known = t[: N // 4], teacher_weight
    for heads in ("apart", "shared"):
        each = torch.stack([weight] * STUDENTS) if heads == "apart" else weight
        runs = {"nanonet": partial(ours_hidden, stack, each, *known, 0.0)}
        own = list(each) if heads == "apart" else [weight] * STUDENTS
        calls = [partial(ours_hidden, one, w, *known, 0.0) for one, w in zip(stack, own, strict=True)]
        runs["four calls"] = partial(_each, calls)
        shape = {"K": STUDENTS, "N": N // 4, "D": D, "V": V}
        yield from _lines(f"distill_linear_loss kl, heads {heads}", shape, name, runs, {}, {"four calls": "1.3x"})


def _each(calls: Iterable[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def inputs(N: int, D: int, V: int, dtype: torch.dtype) -> list[Tensor]:
    """x, weight, and the teacher's."""
    scales = ((N, D), 1.0), ((V, D), 2 * D**-0.5), ((N, D), 1.0), ((V, D), 2 * D**-0.5)
    return [draw(*shape, dtype=dtype, scale=scale, seed=i) for i, (shape, scale) in enumerate(scales)]


def _lines(op: str, shape: dict[str, int], name: str, runs: Runs, errors: dict[str, float], must: dict[str, str]):
    own, peer = errors.get("nanonet"), min((e for run, e in errors.items() if run != "nanonet"), default=None)
    if own is not None and peer is not None and not own <= 2 * peer + 1e-5:
        raise InputError(f"{op} is wrong by {own:.3g} (the eager form: {peer:.3g}): not timed")
    memory = {run: peak_mb(call) for run, call in runs.items()}
    for run, values in times_ms(runs, seconds=SECONDS).items():
        line = record(op, shape, name, "cpu", run, values, error=errors.get(run), reference_error=peer)
        yield {**line, "peak_mem_mb": memory[run], "must": must.get(run)}


def records(suite: str, dtypes: tuple[str, ...] = tuple(DTYPES)) -> Iterator[dict[str, Any]]:
    """One record for each table and implementation; suite: topk or from_hidden.

    Raises:
        InputError: ours is wrong: it is not timed.
    """
    with threads(1):
        for name in dtypes:
            yield from topk(name) if suite == "topk" else from_hidden(name)
