"""cohort_linear, forward and backward: the op against torch's own calls for the same result.

nanonet         cohort_linear, then backward
linear          one F.linear a student, its LoRA part added: what a loop over K models does
addmm           one addmm a student, its LoRA part by a second addmm
baddbmm         one baddbmm for all students, the LoRA part by a second one
peft            PEFT's LoRA layers, one for each student (tuning lora)
gemm            the base product alone, and its gradients to x and to a W that is trained: the least that a layer costs
triton          on a GPU: our kernels, also where torch's own calls serve the op
...-graph       on a GPU: the same within a CUDA graph, the GPU's own time
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanonet import cohort_linear, reference
from nanonet.benchmarks.measure import each_ms, graph_ms, record, small_times_ms, times_ms
from nanonet.errors import InputError

# (K, M, D, F, R): 48 texts of 50 tokens through an attention and a feed-forward product of a 384-wide encoder
SHAPES = ((2, 2400, 384, 384, 8), (4, 2400, 384, 384, 8), (4, 2400, 384, 1536, 8))
GPU_SHAPES = ((4, 2048, 768, 768, 8), (1, 8192, 4096, 4096, 16))
KINDS = ((False, "lora"), (False, "bias"), (True, "lora"), (True, "bias"), (True, "full"))  # is W stacked; tuning
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ATOL = {torch.float32: 1e-5, torch.bfloat16: 3e-2}

Arguments = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def setup(
    K: int, M: int, D: int, out: int, R: int, dtype: torch.dtype, device: str, stacked: bool, lora: bool
) -> Arguments:
    """x (K,M,D), weight (F,D) or (K,F,D), bias (K,F), lora_a (K,R,D), lora_b (K,F,R)"""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=g) * shape[-1] ** -0.5).to(device, dtype)

    weight = draw(K, out, D) if stacked else draw(out, D)
    return draw(K, M, D), weight, draw(K, out), draw(K, R, D) if lora else None, draw(K, out, R) if lora else None


def linear(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    weights = weight if weight.dim() == 3 else [weight] * len(x)
    rows = [F.linear(*each) for each in zip(x, weights, bias, strict=True)]
    if a is not None and b is not None:
        rows = [y + F.linear(F.linear(x_k, a_k), b_k) for y, x_k, a_k, b_k in zip(rows, x, a, b, strict=True)]
    return torch.stack(rows) if len(rows) > 1 else rows[0][None]


def addmm(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    weights = weight if weight.dim() == 3 else [weight] * len(x)
    rows = [torch.addmm(b_k, x_k, w_k.t()) for x_k, w_k, b_k in zip(x, weights, bias, strict=True)]
    if a is not None and b is not None:
        rows = [torch.addmm(y, x_k @ a_k.t(), b_k.t()) for y, x_k, a_k, b_k in zip(rows, x, a, b, strict=True)]
    return torch.stack(rows) if len(rows) > 1 else rows[0][None]


def baddbmm(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    y = torch.baddbmm(bias[:, None], x, weight.mT.expand(len(x), -1, -1))
    return y if a is None or b is None else torch.baddbmm(y, x @ a.mT, b.mT)


CALLS: dict[str, Callable[..., Tensor]] = {
    "nanonet": cohort_linear,
    "linear": linear,
    "addmm": addmm,
    "baddbmm": baddbmm,
}


def gemm(x: Tensor, weight: Tensor, *others: None) -> Tensor:
    return x @ weight.mT


def peft(arguments: Arguments) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """PEFT's layers with the same parameters, and the trained ones among them."""
    from peft import LoraConfig, inject_adapter_in_model

    x, weight, bias, a, b = arguments
    assert a is not None and b is not None
    layers = torch.nn.ModuleList()
    for w_k, b_k in zip(weight if weight.dim() == 3 else [weight] * len(x), bias, strict=True):
        layer = torch.nn.Linear(w_k.shape[1], w_k.shape[0], device="meta")
        layer.weight, layer.bias = torch.nn.Parameter(w_k, False), torch.nn.Parameter(b_k)
        layers.append(layer)
    config = LoraConfig(r=a.shape[1], lora_alpha=a.shape[1], target_modules=[str(k) for k in range(len(x))])
    model: Any = inject_adapter_in_model(config, layers)
    trained: list[Tensor] = []
    for layer, a_k, b_k in zip(model, a, b, strict=True):
        adapter = layer.lora_A["default"], layer.lora_B["default"]
        adapter[0].weight, adapter[1].weight = torch.nn.Parameter(a_k), torch.nn.Parameter(b_k)
        layer.base_layer.bias.requires_grad_()
        trained += [layer.base_layer.bias, adapter[0].weight, adapter[1].weight]

    def call(x: Tensor) -> Tensor:
        rows = [layer(x_k) for layer, x_k in zip(model, x, strict=True)]
        return torch.stack(rows) if len(rows) > 1 else rows[0][None]

    return call, trained


def with_backward(call: Callable[..., Tensor], arguments: Arguments, dy: Tensor, full: bool) -> Callable[[], Any]:
    """Forward and backward; the weight trains in full tuning only."""
    leaves = [t if t is None else t.detach().requires_grad_(full or i != 1) for i, t in enumerate(arguments)]
    trained = [t for t in leaves if t is not None and t.requires_grad]
    return lambda: torch.autograd.grad(call(*leaves), trained, dy)


def peft_run(arguments: Arguments, dy: Tensor, phase: str) -> Callable[[], Any]:
    call, trained = peft(arguments)
    x = arguments[0].detach().requires_grad_()
    if phase == "forward":
        return torch.no_grad()(lambda: call(arguments[0]))
    return lambda: torch.autograd.grad(call(x), [x, *trained], dy)


def kernels(arguments: Arguments, dy: Tensor, phase: str, full: bool) -> Callable[[], Any]:
    """The op by Triton's kernels, without autograd."""
    own: Any = importlib.import_module("nanonet.kernels.cohort_linear")
    x, weight, bias, a, b = arguments
    needs = [True, full, True, a is not None, b is not None]

    def run() -> Any:
        y, low = own.cohort_linear_fwd(x, weight, bias, a, b, None, None, 0.0)
        if phase == "forward":
            return y
        return own.cohort_linear_bwd(dy, x, low, weight, a, b, None, None, 0.0, False, needs)

    return run


def timed(runs: dict[str, Callable[[], Any]], device: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name and times [ms]. On a GPU the calls are timed many at a time, and in a graph: a synchronisation after each
    would time the host."""
    if device == "cpu":
        yield from times_ms(runs, seconds=0.4).items()
        return
    yield from small_times_ms(runs, rounds=10, calls=10).items()
    for name, values in each_ms(runs, partial(graph_ms, calls=5), tuple(runs)):
        yield f"{name}-graph", values


def errors(arguments: Arguments, dtype: torch.dtype) -> tuple[float, float]:
    """Largest error of y, ours and torch's in the same dtype, against float64.

    Raises:
        InputError: our error is more than twice torch's; nothing is timed.
    """
    wider: Any = [None if t is None else t.double() for t in arguments]
    truth, _ = reference.cohort_linear(*wider)
    error, own = ((y.double() - truth).abs().max().item() for y in (cohort_linear(*arguments), linear(*arguments)))
    if not error <= 2 * own + ATOL[dtype]:
        raise InputError(f"cohort_linear is wrong by {error:.3g} (torch: {own:.3g}): not timed")
    return error, own


def records(dtypes: tuple = tuple(DTYPES), device: str = "cpu") -> Iterator[dict[str, Any]]:
    """One record for each shape, kind of weight, tuning, dtype and implementation."""
    for dtype_name in dtypes:
        for shape in SHAPES if device == "cpu" else GPU_SHAPES:
            for stacked, tuning in KINDS if shape[0] > 1 else KINDS[:2]:  # one student has nothing to stack
                dtype = DTYPES[dtype_name]
                arguments = setup(*shape, dtype, device, stacked, tuning == "lora")
                error, own = errors(arguments, dtype)
                K, M, D, out, R = shape
                dy = torch.randn(K, M, out, generator=torch.Generator().manual_seed(1)).to(device, dtype)
                for phase in ("forward", "forward+backward"):
                    runs: dict[str, Callable[[], Any]] = {
                        name: partial(call, *arguments)
                        if phase == "forward"
                        else with_backward(call, arguments, dy, tuning == "full")
                        for name, call in CALLS.items()
                    }
                    if tuning == "lora":
                        runs["peft"] = peft_run(arguments, dy, phase)
                    alone: Any = (*arguments[:2], None, None, None)
                    runs["gemm"] = (
                        partial(gemm, *alone)
                        if phase == "forward"
                        else with_backward(gemm, alone, dy, tuning == "full")
                    )
                    if device != "cpu":
                        runs["triton"] = kernels(arguments, dy, phase, tuning == "full")
                    for name, values in timed(runs, device):
                        yield record(
                            "cohort_linear",
                            {"K": K, "M": M, "D": D, "F": out, "R": R},
                            dtype_name,
                            device,
                            name,
                            values,
                            error=error if name == "nanonet" else None,
                            reference_error=own,
                            weight="stacked" if stacked else "shared",
                            tuning=tuning,
                            phase=phase,
                        )
