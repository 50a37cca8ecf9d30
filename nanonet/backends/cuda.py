"""The compiled CUDA kernels: `nanonet._C_cuda` registers them where they were built and torch finds a device.

They serve a device once `serve` of the module says so, which is where they have been checked (gate.py): float32,
bfloat16 and float16, up to eight students with kl and cross_entropy and four with the other divergences, on GPUs of the
architectures that they were built for. Other calls they pass on to `nanonet::uncompiled_<op>`, defined here: Triton's
kernels if Triton is installed and may serve, else the reference. It has a name of its own because the dispatcher would
send `<op>` back to them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from nanonet import eager
from nanonet.backends import gate, triton
from nanonet.schemas import SCHEMAS

NOT_BUILT = "nanonet._C_cuda was not built (that takes nvcc and a torch with CUDA at install time)"
# the ops that the CUDA kernels may pass on
PASSED_ON = ("distill_terms", "distill_terms_backward", "distill_loss", "distill_loss_into_", "distill_scale_")
_LIBRARY = torch.library.Library("nanonet", "FRAGMENT")
_SERVED: set[int] = set()  # devices that the compiled kernels were told to serve
_loaded = False


def load() -> str | None:
    """Import the module, which registers the ops for CUDA; the reason why it cannot serve, or None.

    A module that was built but does not load raises its own error: a broken install must not be a slow one.
    """
    global _loaded
    if importlib.util.find_spec("nanonet._C_cuda") is None:
        return NOT_BUILT
    if not torch.cuda.is_available():
        return triton.NO_DEVICE
    if not _loaded:
        define_uncompiled()
        importlib.import_module("nanonet._C_cuda")
        _loaded = True
    return None


def build_info() -> dict[str, Any]:
    """cuda_arches and cuda_toolkit; {} where the module cannot be loaded."""
    return {} if load() is not None else importlib.import_module("nanonet._C_cuda").build_info()


def define_uncompiled() -> None:
    functions: dict[str, Callable[..., Any]] = {**eager.OPS, "distill_loss_into_": _loss_into}
    if importlib.util.find_spec("triton") is not None:
        functions |= triton.gated()
    for op in PASSED_ON:
        _LIBRARY.define(f"uncompiled_{op}{SCHEMAS[op]}")
        _LIBRARY.impl(f"uncompiled_{op}", _decided(op, functions[op]), "CompositeExplicitAutograd")


def _decided(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, but a device's first call decides whether the compiled kernels serve it, which then take the call."""

    def call(first, *others):
        index = first.device.index
        if not first.is_cuda or index in _SERVED or not gate.serves(gate.CUDA, index):
            return function(first, *others)
        _SERVED.add(index)
        importlib.import_module("nanonet._C_cuda").serve(index)
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.nanonet, op).default(first, *others)

    return call


def _loss_into(dstudent, *arguments):
    loss, means, gradient = torch.ops.nanonet.uncompiled_distill_loss.default(*arguments, True)
    dstudent.copy_(gradient)
    return loss, means
