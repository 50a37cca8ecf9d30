"""The Triton kernels, on CUDA devices where they have been checked (gate.py): float32, bfloat16 and float16.

The reference serves the other devices, float64, empty tensors, and linear layers so small that launching nine Triton
kernels takes the host longer than the GPU computes.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from nanonet import eager, eager_topk, reference
from nanonet.backends import gate

NO_DEVICE = "torch finds no CUDA device"
NOT_INSTALLED = "triton is not installed (pip install 'nanonet[triton]'): the reference serves CUDA"
# Operations of the base product up to which torch's own calls serve a linear layer without dropout (torch would have to
# make its mask). An estimate, not yet measured on a GPU: forward and backward of a LoRA layer take the host 117 us by
# baddbmm and about 370 us by our kernels (tiny tensors, no driver; 330 measured for seven launches); so many operations
# take a GPU of 600 TFLOP/s 107 us, twice that with the gradient of x.
HOST_BOUND = 64e9
TOPK = {
    "distill_topk_terms": "distill_topk_terms_fwd",
    "distill_topk_terms_backward": "distill_topk_terms_bwd",
    "distill_topk_loss": "distill_topk_loss_fwd",
}
_LIBRARY = torch.library.Library("nanonet", "FRAGMENT")


def load() -> str | None:
    """Register the kernels for CUDA, except for ops that are registered already; the reason where it cannot, else None.

    A triton that is installed but does not load raises its own error.
    """
    if not torch.cuda.is_available():
        return NO_DEVICE
    if importlib.util.find_spec("triton") is None:
        return NOT_INSTALLED
    for op, function in gated().items():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"nanonet::{op}", "CUDA"):
            _LIBRARY.impl(op, function, "CUDA")
    return None


def gated() -> dict[str, Callable[..., Any]]:
    """The ops by name: by the kernels on a GPU that they may serve, else by the reference."""

    def choose(kernel: Callable[..., Any], by_reference: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Tensor | list[Tensor], *others):
            device = _device_of(first)
            if device.type == "cuda" and not gate.serves(gate.TRITON, device.index):
                return by_reference(first, *others)
            return kernel(first, *others)

        return call

    others = eager_topk.OPS | {"cohort_linear": reference.cohort_linear, "cohort_linear_backward": _contiguous_backward}
    return {op: choose(kernel, (eager.OPS | others)[op]) for op, kernel in implementations().items()}


def implementations() -> dict[str, Callable[..., Any]]:
    """The ops by name. With Triton's interpreter (TRITON_INTERPRET=1) they take CPU tensors too."""
    distill: Any = importlib.import_module("nanonet.kernels.distill")
    topk: Any = importlib.import_module("nanonet.kernels.topk")
    linear: Any = importlib.import_module("nanonet.kernels.cohort_linear")

    def or_eager(kernel: Callable[..., Any], name: str) -> Callable[..., Any]:
        logits = 1 if name == "distill_terms_backward" else 0
        return lambda *given: (eager.OPS[name] if given[logits].dtype == torch.float64 else kernel)(*given)

    def cohort_linear(x, weight, bias, lora_a, lora_b, scale, seed, dropout):
        if _by_reference(x, weight, lora_a, dropout if seed is not None else 0):
            return reference.cohort_linear(x, weight, bias, lora_a, lora_b, scale, seed, dropout)
        return linear.cohort_linear_fwd(x, weight, bias, lora_a, lora_b, scale, seed, dropout)

    def cohort_linear_backward(dy, x, low, weight, lora_a, lora_b, scale, seed, dropout, *options):
        by_reference = _by_reference(dy, weight, lora_a, dropout if seed is not None else 0)
        backward = _contiguous_backward if by_reference else linear.cohort_linear_bwd
        gradients = backward(dy, x, low, weight, lora_a, lora_b, scale, seed, dropout, *options)
        return tuple(gradient.contiguous() for gradient in gradients)

    kernels = {
        "distill_terms": distill.distill_terms_fwd,
        "distill_terms_backward": distill.distill_terms_bwd,
        "distill_loss": distill.distill_loss_fwd,
        "distill_scale_": distill.distill_scale,
    }
    functions = {name: or_eager(kernel, name) for name, kernel in kernels.items()}
    functions |= {name: _or_reference(getattr(topk, kernel), topk.MOST_CLASSES, name) for name, kernel in TOPK.items()}
    functions |= {"cohort_linear": cohort_linear, "cohort_linear_backward": cohort_linear_backward}
    return {name: _on_its_device(function) for name, function in functions.items()}


def _or_reference(kernel: Callable[..., Any], most: int, name: str) -> Callable[..., Any]:
    """`kernel`, but the reference for float64, and for more classes of a row than it holds."""
    first = int(name == "distill_topk_terms_backward")

    def call(*given):
        student, ids = given[first : first + 2]
        by_kernel = student[0].dtype != torch.float64 and ids.shape[-1] <= most
        return kernel(*given) if by_kernel else eager_topk.OPS[name](*given)

    return call


def _contiguous_backward(*arguments):
    # as the op's fake says: a product of transposes can come out transposed
    return tuple(gradient.contiguous() for gradient in reference.cohort_linear_backward(*arguments))


def _by_reference(x: Tensor, weight: Tensor, lora_a: Tensor | None, dropout: float) -> bool:
    """Whether the reference serves a linear layer. x: its input, or the gradient of its output."""
    if x.dtype == torch.float64 or not all(t.numel() for t in (x, weight, lora_a) if t is not None):
        return True
    students = max(t.shape[0] if t.dim() == 3 else 1 for t in (x, weight))
    operations = 2 * students * x.shape[-2] * weight.shape[-2] * weight.shape[-1]
    return x.is_cuda and not dropout and operations <= HOST_BOUND


def _device_of(first: Tensor | list[Tensor]) -> torch.device:
    return (first[0] if isinstance(first, list) else first).device


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Launch on the device of the first argument, on its current stream."""

    def launch(first: Tensor | list[Tensor], *others):
        device = _device_of(first)
        with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return function(first, *others)

    return launch
