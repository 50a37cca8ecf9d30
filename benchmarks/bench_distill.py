"""The distillation loss and its gradient: ours against the usual implementations.

naive          K divergences from the teacher, K(K-1) between the students, one at a time, as most programs do
closed         the same with one log-softmax a tensor and all pairs at O(K), in eager torch
compiled       torch.compile of `closed`; compiled-naive of `naive`
torchtune      one call a student in torchtune's ForwardKLLoss pattern (float32 copies, masked mean), teacher only
liger          one call a student of Liger-Kernel's KL, where it and a GPU are there, teacher only
nanonet        distill_loss, then backward
triton-op      our Triton kernels, where the compiled ones serve the GPU; and into a fresh buffer
nanonet-op     the kernel alone, loss and gradient, into a reused buffer; fresh: into memory the system has just given
terms-op       on a GPU: distill_terms and its backward, which read the logits twice; its floor is 3K+2 passes
nanonet-graph  on a GPU and at small shapes: the op within a CUDA graph, the GPU's own time; memcpy-graph the copy
sum            student.sum().backward(): the least that autograd costs
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanonet import distill_loss, reference
from nanonet.backends import gate, triton
from nanonet.benchmarks.measure import (
    copy_of,
    each_ms,
    fresh_memory,
    graph_ms,
    peak_mb,
    record,
    small_times_ms,
    times_ms,
)
from nanonet.errors import InputError

# text classification; a middle and a vocabulary-sized number of classes
SHAPES = ((2, 32, 4), (4, 32, 4), (3, 512, 1000), (2, 256, 30522), (4, 256, 30522))
# the most important first: the last may be cut off; the first does not fit eager torch on an 80 GB card
GPU_SHAPES = ((4, 8192, 128256), (4, 8192, 32000), (4, 1024, 100), (2, 32, 4), (4, 2048, 128256), (4, 8192, 1000))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHTS = (1.0, 1.0, 0.5)
SECONDS = {"cpu": 2.0, "cuda": 0.4}  # of each implementation at each shape
ROUNDS = {"cpu": 40, "cuda": 10}  # each of CALLS calls, at small shapes
ROWS_CHECKED = 512  # rows checked against float64 at a time
SMALL = {"cpu": 10_000, "cuda": 100_000_000}  # logits below which calls are timed many at a time
CALLS = {"cpu": 200, "cuda": 100}
ATOL = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def setup(K: int, N: int, C: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Student (K,N,C), teacher (N,C), label (N,), half of it -100."""
    g = torch.Generator(device).manual_seed(0)
    student = (2 * torch.randn(K, N, C, generator=g, device=device)).to(dtype)
    teacher = (2 * torch.randn(N, C, generator=g, device=device)).to(dtype)
    label = torch.randint(0, C, (N,), generator=g, device=device)
    label[N // 2 :] = -100
    return student, teacher, label


def naive(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Pair by pair, as most programs do."""
    K = len(student)
    loss = student.new_zeros((), dtype=torch.float32)
    for k in range(K):
        log_q = student[k].float().log_softmax(-1)
        loss = loss + WEIGHTS[0] * F.cross_entropy(student[k].float(), label)
        loss = loss + WEIGHTS[1] * F.kl_div(log_q, teacher.float().softmax(-1), reduction="batchmean")
        for j in range(K):
            if j != k:
                peer = student[j].detach().float().softmax(-1)
                loss = loss + WEIGHTS[2] / (K - 1) * F.kl_div(log_q, peer, reduction="batchmean")
    return loss


def closed(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """One log-softmax a tensor, all pairs at O(K): sum_{j != k} KL(q_j || q_k) = sum_c (A - Q l_k)."""
    K, N, _ = student.shape
    log_q, log_p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    p, q = log_p.exp(), log_q.detach().exp()
    known = label >= 0
    picked = log_q.gather(-1, label.clamp(min=0).expand(K, N)[..., None])[..., 0]
    ce = -torch.where(known, picked, 0).sum() / known.sum()
    from_teacher = (p * (log_p - log_q)).sum() / N
    others = q.sum(0) - q
    peers = ((q * log_q.detach()).sum(0) - q * log_q.detach() - others * log_q).sum() / (N * max(K - 1, 1))
    return WEIGHTS[0] * ce + WEIGHTS[1] * from_teacher + WEIGHTS[2] * peers


def torchtune(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """torchtune's ForwardKLLoss, student by student: the teacher's term alone."""
    loss = student.new_zeros((), dtype=torch.float32)
    for row in student:
        p = F.softmax(teacher, -1, dtype=torch.float32)
        log_q = F.log_softmax(row, -1, dtype=torch.float32)
        masked = torch.masked_fill(p * log_q, torch.isinf(row), 0)
        loss = loss - masked.sum(-1).mean()
    return loss


@cache
def liger_kl() -> Callable[..., Tensor]:
    return importlib.import_module("liger_kernel.transformers").LigerKLDIVLoss(reduction="batchmean")


def liger(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Liger-Kernel's KL, a call a student, on log-probabilities, its input. The teacher's term alone."""
    p = teacher.float().softmax(-1)
    total = student.new_zeros((), dtype=torch.float32)
    for row in student:
        total = total + liger_kl()(row.float().log_softmax(-1), p)
    return total


def ours(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    return distill_loss(student, teacher, label, weights=WEIGHTS)[0]


def with_backward(
    loss: Callable[..., Tensor], student: Tensor, *others: Tensor, in_leaf: bool = True
) -> Callable[[], Tensor]:
    """in_leaf: the gradient stays in leaf.grad until the next call, as between two steps."""
    leaf = student.detach().requires_grad_()

    def run() -> Tensor:
        leaf.grad = None
        loss(leaf, *others).backward()
        assert leaf.grad is not None
        return leaf.grad

    return run if in_leaf else lambda: torch.autograd.grad(loss(leaf, *others), leaf)[0]


def op_fresh(student: Tensor, teacher: Tensor, label: Tensor) -> Callable[[], Any]:
    weights = torch.tensor(WEIGHTS, device=student.device)
    op = torch.ops.nanonet.distill_loss.default
    return lambda: op(student, teacher, label, weights, None, None, 1.0, 0, 0.0, True)


def op_reused(student: Tensor, teacher: Tensor, label: Tensor) -> Callable[[], Any]:
    weights, dstudent = torch.tensor(WEIGHTS, device=student.device), torch.empty_like(student)
    op = torch.ops.nanonet.distill_loss_into_.default
    return lambda: op(dstudent, student, teacher, label, weights, None, None, 1.0, 0, 0.0)


def op_triton(student: Tensor, teacher: Tensor, label: Tensor) -> Callable[[], Any]:
    weights = torch.tensor(WEIGHTS, device=student.device)
    op = triton.implementations()["distill_loss"]
    return lambda: op(student, teacher, label, weights, None, None, 1.0, 0, 0.0, True)


def op_terms(student: Tensor, teacher: Tensor, label: Tensor) -> Callable[[], Any]:
    upstream = torch.ones(3, *student.shape[:2], device=student.device)
    forward, backward = torch.ops.nanonet.distill_terms.default, torch.ops.nanonet.distill_terms_backward.default

    def run() -> Tensor:
        _, stats = forward(student, teacher, label, 1.0, 0, 0.0)
        return backward(upstream, student, teacher, label, stats, 1.0, 0, 0.0)

    return run


def errors(student: Tensor, teacher: Tensor, label: Tensor) -> tuple[float, float]:
    """Largest error of the gradient, ours and the reference's in the same dtype, against float64."""
    N = student.shape[1]
    w, counts = torch.tensor(WEIGHTS, device=student.device), torch.tensor([float(N // 2), N], device=student.device)
    mine, error, own = with_backward(ours, student, teacher, label)(), 0.0, 0.0
    for n in range(0, N, ROWS_CHECKED):  # in slices: float64 takes eight times the memory
        rows = slice(n, n + ROWS_CHECKED)
        part = student[:, rows], teacher[rows], label[rows]
        truth = reference.distill_loss(part[0].double(), part[1].double(), part[2], w.double(), None, counts)[2]
        plain = reference.distill_loss(*part, w, None, counts)[2]
        error = max(error, (mine[:, rows].double() - truth).abs().max().item())
        own = max(own, (plain.double() - truth).abs().max().item())
    return error, own


def implementations(inputs: tuple[Tensor, Tensor, Tensor], compiled: bool, device: str) -> dict[str, Callable[[], Any]]:
    """Loss and gradient, through autograd."""
    losses: dict[str, Callable[..., Tensor]] = {
        "nanonet": ours,
        "naive": naive,
        "closed": closed,
        "torchtune": torchtune,
        "sum": lambda student, *_: student.sum(),
    }
    if device != "cpu" and importlib.util.find_spec("liger_kernel"):  # its kernels are Triton's
        losses["liger"] = liger
    if compiled:
        torch._dynamo.reset()
        losses["compiled"] = torch.compile(closed, fullgraph=True, dynamic=False)
        if device == "cpu":
            losses["compiled-naive"] = torch.compile(naive, fullgraph=True, dynamic=False)
    # on a GPU the gradients of all do not fit at once
    return {name: with_backward(loss, *inputs, in_leaf=device == "cpu") for name, loss in losses.items()}


def timed(
    inputs: tuple[Tensor, Tensor, Tensor], floor: int, compiled: bool, device: str
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None, float | None]]:
    """Name and times [ms] of each implementation, those of a copy of `floor` bytes in the same run, peak memory [MB].

    On a GPU one after the other, each handed out as soon as it is timed. Where the shape is small the copy's time is
    the host's there: only within a graph do the two compare.
    """
    small = inputs[0].numel() < SMALL[device]
    clock = partial(times_ms, seconds=SECONDS[device])
    if small:
        clock = partial(small_times_ms, rounds=ROUNDS[device], calls=CALLS[device])
    runs = implementations(inputs, compiled, device)
    if device == "cpu":
        taken = clock({**runs, "nanonet-op-fresh": op_fresh(*inputs)})
        peaks = {name: round(peak_mb(run, device), 3) for name, run in runs.items()}
        # in new buffers, allocated after those of the others are freed
        taken |= clock({"nanonet-op": op_reused(*inputs), "memcpy": copy_of(floor, device)})
        yield from ((name, values, taken["memcpy"], peaks.get(name)) for name, values in taken.items())
        return
    copy, reused = None, {"memcpy": copy_of(floor, device), "nanonet-op": op_reused(*inputs)}
    for name, values in each_ms(reused, clock, ()):
        copy = values if name == "memcpy" and not small else copy
        yield name, values, copy, None
    if small:
        graphs = dict(each_ms(reused, graph_ms, tuple(reused)))
        for name, values in graphs.items():
            yield f"{name.removesuffix('-op')}-graph", values, graphs.get("memcpy"), None
    reused.clear()  # frees their buffers
    alone = {"nanonet-op-fresh": op_fresh(*inputs), "terms-op": op_terms(*inputs)}
    if gate.TRITON in gate.passed(torch.cuda.current_device()):
        alone["triton-op"] = op_triton(*inputs)
    for name, values in each_ms({**runs, **alone}, clock, {*runs, *alone} - {"nanonet"}):
        yield name, values, copy, round(peak_mb(runs[name], device), 3) if name in runs else None


def records(
    shapes: tuple = (), dtypes: tuple = tuple(DTYPES), compiled: bool = True, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """One record for each shape, dtype and implementation.

    Raises:
        InputError: ours is wrong at some shape; only after the others are timed.
    """
    fresh_memory()
    wrong: list[str] = []
    for dtype_name in dtypes:
        for K, N, C in shapes or (SHAPES if device == "cpu" else GPU_SHAPES):
            dtype = DTYPES[dtype_name]
            inputs = setup(K, N, C, dtype, device)
            error, own = errors(*inputs)
            if not error <= 2 * own + ATOL[dtype] / N:
                wrong.append(f"distill_loss is wrong by {error:.3g} (torch: {own:.3g}) at {(K, N, C)}: not timed")
                continue
            one_pass = N * C * dtype.itemsize
            floor = (2 * K + 1) * one_pass
            for name, values, copy, peak in timed(inputs, floor, compiled, device):
                own_floor = (3 * K + 2) * one_pass if name == "terms-op" else floor
                share = None if copy is None else float(np.median(copy) * own_floor / floor / np.median(values))
                yield record(
                    "distill_loss",
                    {"K": K, "N": N, "C": C},
                    dtype_name,
                    device,
                    name,
                    values,
                    bytes_floor=own_floor,
                    floor_fraction=share,
                    peak_mem_mb=peak,
                    error=error if name.startswith("nanonet") else None,
                    reference_error=own,
                )
    if wrong:
        raise InputError("; ".join(wrong))
