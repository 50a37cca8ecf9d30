"""A conformance kit for the loss from hidden states: `check_linear_loss(fn)` judges any callable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nanonet import reference, reference_topk
from nanonet.reference import DEFAULT_BETA, DIVERGENCES, UNLABELLED
from nanonet.reference_topk import Tail
from nanonet.testing.judge import check_bits, check_value, name_of
from nanonet.testing.linear import ALLOWED, error_of
from nanonet.testing.loss_ops import WEIGHTS
from nanonet.testing.report import Check, Report, ended
from nanonet.testing.topk_ops import likeliest

Arguments = dict[str, Any]
LEAVES = ("hidden", "weight", "bias")
NAME = "distill_linear_loss"


def check_linear_loss(
    fn: Callable[..., tuple[Tensor, Tensor]],
    *,
    divergence: str,
    make_topk: Callable[[Tensor, Tensor, int], Any] | None = None,
    temperature: float = 2.0,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Report:
    """Judge fn with the arguments of `nanonet.distill_linear_loss`: loss, means and the gradients of hidden states,
    weights and biases by autograd, against logits that are made whole in float64; and the same bits twice.

    Args:
        make_topk: makes fn's teacher of ids, logprobs and `reference_topk.Tail`; without it there are no such cases.
        divergence, temperature: as `nanonet.distill_linear_loss`; mse is judged at temperature 1.
    Returns:
        A report to print; `report.raise_failures()` in a test. Nothing is raised for what fn does.
    """
    tau = 1.0 if divergence == "mse" else temperature
    named = {"divergence": divergence, "temperature": tau}
    checks: list[Check] = []
    for dtype in dtypes:
        for case, arguments in _cases(dtype, tau, seed, device):
            if isinstance(arguments["teacher_hidden"], tuple) and (make_topk is None or divergence == "mse"):
                continue
            checks += _judge(fn, case, arguments | named, make_topk, dtype)
    return Report(tuple(checks), ())


def _cases(dtype: torch.dtype, temperature: float, seed: int, device) -> Iterator[tuple[str, Arguments]]:
    K, N, D, E, V = 3, 10, 24, 5, 37
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype)  # noqa: E731
    label = torch.arange(N, device=device) % V
    label[::3] = UNLABELLED
    teacher = {"teacher_hidden": draw(N, E), "teacher_weight": draw(V, E), "teacher_bias": draw(V)}
    base: Arguments = {"hidden": draw(K, N, D), "weight": draw(K, V, D) / 2, "bias": draw(K, V), "chunk": 4}
    weights = torch.tensor(WEIGHTS, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device)
    base |= {**teacher, "label": label, "weights": weights}
    shared = {"weight": draw(V, D) / 2, "bias": draw(V)}
    yield "own heads", base
    yield "one head", base | shared
    for chunk in (1, 10, None):
        yield f"chunk {chunk}", base | shared | {"chunk": chunk}
    widths = (D, 2 * D + 1)
    lists = {"hidden": [draw(N, w) for w in widths], "weight": [draw(V, w) / 4 for w in widths], "bias": None}
    yield "lists of other widths", base | lists
    yield "one student", base | {"hidden": draw(N, D), "weight": draw(V, D) / 2, "bias": None}
    yield "frozen weight", base | shared | {"frozen": ("weight", "bias")}
    logits = 2 * draw(N, V)
    yield "logits", base | {"teacher_hidden": logits, "teacher_weight": None, "teacher_bias": None}
    for tail in Tail:
        top = (*likeliest(logits, 6, temperature, dtype), int(tail))
        given = {"teacher_hidden": top, "teacher_weight": None, "teacher_bias": None}
        yield f"top-k, {tail.name.lower()}", base | given
    yield "no teacher", base | dict.fromkeys(teacher)
    yield "no labels", base | {"label": None}
    row_weight = torch.arange(N, device=device) % 4 / 2
    own = (torch.arange(K * N, device=device).view(K, N) % 4).float()
    yield "row weights", base | {"row_weight": row_weight}
    yield "row weights of each", base | shared | {"row_weight": own}
    yield "denominators", base | {"row_weight": row_weight, "denominators": (3.0, 7.0)}
    transforms = {"transform": _softcap, "teacher_transform": _softcap}
    yield "transforms", base | {**transforms, "label": torch.where(label < V - 4, label, UNLABELLED)}
    yield "logits of hundreds", base | {"hidden": 50 * base["hidden"], "teacher_hidden": 50 * base["teacher_hidden"]}
    absent = torch.arange(V, device=device) % 3 == 1
    biases = {name: base[name].masked_fill(absent, -math.inf) for name in ("bias", "teacher_bias")}
    yield "same classes at -inf", base | biases | {"label": torch.where(absent[label % V], UNLABELLED, label)}
    yield "no rows", base | {"hidden": draw(K, 0, D), "teacher_hidden": draw(0, E), "label": label[:0]}


def _softcap(logits: Tensor) -> Tensor:
    return 4 * torch.tanh(logits[..., :-4] / 4)


def _whole(arguments: Arguments, wide: torch.dtype, rounded: torch.dtype | None) -> dict[str, Tensor]:
    """The definition in the dtype `wide`: loss, means and the gradients, for an upstream of 1. rounded: of the gradient
    of the logits, before the last products."""
    leaves = _leaves(arguments, wide)
    one = leaves["hidden"] if isinstance(leaves["hidden"], Tensor) else None
    hidden = leaves["hidden"] if one is None or one.dim() == 3 else one[None]
    K = len(hidden)
    weight, bias = (_each(leaves[name], K, dims) for name, dims in (("weight", 2), ("bias", 1)))
    rows = [x @ w.mT if b is None else x @ w.mT + b for x, w, b in zip(hidden, weight, bias, strict=True)]
    raw = torch.stack(rows)
    leaf = raw.detach().requires_grad_()
    student = arguments["transform"](leaf) if "transform" in arguments else leaf
    teacher, name = arguments["teacher_hidden"], arguments["divergence"]
    codes = arguments["temperature"], DIVERGENCES[name], DEFAULT_BETA.get(name, 0.0)
    given = [arguments.get(key) for key in ("weights", "row_weight", "denominators")]
    more = [None if value is None else torch.as_tensor(value).to(raw.device, wide) for value in given]
    by: Any = (arguments["label"], *more, *codes)
    if isinstance(teacher, tuple):
        found = reference_topk.distill_topk_loss(student.detach(), *teacher, *by)
    else:
        logits = None if teacher is None else _teacher_logits(arguments, teacher.to(wide), wide)
        found = reference.distill_loss(student.detach(), logits, *by)
    dlogits = torch.autograd.grad(student, leaf, found[2])[0]
    if rounded is not None:
        dlogits = dlogits.to(rounded).to(wide)
    wanted = _wanted(leaves, arguments)
    gradients = torch.autograd.grad(raw, list(wanted.values()), dlogits)
    return {"loss": found[0], "means": found[1], **dict(zip(wanted, gradients, strict=True))}


def _teacher_logits(arguments: Arguments, teacher: Tensor, wide: torch.dtype) -> Tensor:
    if arguments["teacher_weight"] is not None:
        teacher = teacher @ arguments["teacher_weight"].to(wide).mT + arguments["teacher_bias"].to(wide)
    return arguments["teacher_transform"](teacher) if "teacher_transform" in arguments else teacher


def _each(given: Any, K: int, dims: int) -> list[Any]:
    return [given] * K if given is None or isinstance(given, Tensor) and given.dim() == dims else list(given)


def _leaves(arguments: Arguments, dtype: torch.dtype | None = None) -> Arguments:
    """Copies of hidden states, weights and biases that want gradients, but for those that are frozen."""

    def leaf(x: Tensor, name: str) -> Tensor:
        return x.detach().to(dtype or x.dtype, copy=True).requires_grad_(name not in arguments.get("frozen", ()))

    def leaves(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [leaf(x, name) for x in value]
        return None if value is None else leaf(value, name)

    return {name: leaves(name, arguments[name]) for name in LEAVES}


def _wanted(leaves: Arguments, arguments: Arguments) -> dict[str, Tensor]:
    named = {f"d{n}": v for n, v in leaves.items() if v is not None and n not in arguments.get("frozen", ())}
    lists = {f"{n}[{k}]": x for n, v in named.items() if isinstance(v, list) for k, x in enumerate(v)}
    return lists | {n: v for n, v in named.items() if isinstance(v, Tensor)}


def _run(fn: Callable[..., Any], arguments: Arguments, make_topk, factor: float) -> dict[str, Tensor]:
    """What fn gives; the gradients are those of factor * loss, over factor."""
    leaves = _leaves(arguments)
    given = arguments | leaves
    if isinstance(given["teacher_hidden"], tuple):
        given["teacher_hidden"] = make_topk(*given["teacher_hidden"])
    loss, means = fn(**{name: value for name, value in given.items() if name != "frozen"})
    wanted = _wanted(leaves, arguments)
    gradients = torch.autograd.grad(loss, list(wanted.values()), torch.full_like(loss, factor))
    scaled = {name: (g.double() / factor).to(g.dtype) for name, g in zip(wanted, gradients, strict=True)}
    return {"loss": loss.detach(), "means": means, **scaled}


def _judge(fn: Callable[..., Any], case: str, arguments: Arguments, make_topk, dtype: torch.dtype) -> list[Check]:
    exact = _whole(arguments, torch.float64, None)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    plain = _whole(arguments, wide, torch.bfloat16 if dtype == torch.bfloat16 else None)
    try:
        found, again, other = (_run(fn, arguments, make_topk, factor) for factor in (1.0, 1.0, -2.5))
    except Exception as error:
        return [ended(case, name_of(dtype), error, NAME)]
    checks = [check_value(case, dtype, NAME, found[name], plain[name], exact[name]) for name in ("loss", "means")]
    for name in (name for name in exact if name.startswith("d")):
        bar = 2 * error_of(plain[name].to(dtype), exact[name]) + ALLOWED[dtype]
        for some in (found, other):
            off = error_of(some[name], exact[name])
            checks.append(Check(case, name_of(dtype), NAME, off, bar, f"the gradient of {name[1:]}"))
    return [*checks, check_bits(case, dtype, NAME, list(found.values()), list(again.values()))]
