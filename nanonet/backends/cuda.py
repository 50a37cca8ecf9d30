"""The compiled CUDA kernels: `nanonet._C_cuda` registers them where they were built and torch finds a device.

They take float32, bfloat16 and float16 and up to eight students. For the rest they call back: `reference_<op>`,
defined here, is the reference under a name of its own, since the dispatcher would hand `<op>` to the kernels again.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from nanonet import reference

NOT_BUILT = "nanonet._C_cuda was not built (it takes nvcc and a torch with CUDA at install time)"
_LIBRARY = torch.library.Library("nanonet", "FRAGMENT")


def load() -> str | None:
    """Import the module, which registers the ops for CUDA; the reason where it cannot serve, else None.

    A module that was built but does not load raises its own error: a broken install must not be a slow one.
    """
    if importlib.util.find_spec("nanonet._C_cuda") is None:
        return NOT_BUILT
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    importlib.import_module("nanonet._C_cuda")
    return None


def build_info() -> dict[str, Any]:
    """cuda_arches and cuda_toolkit; {} where the module cannot be loaded."""
    return {} if load() is not None else importlib.import_module("nanonet._C_cuda").build_info()


def _terms(student, teacher, label, temperature, divergence):
    with torch.no_grad():
        terms = reference.distill_terms(student, teacher, label, temperature, divergence)
        return terms, reference.row_stats(student, teacher, temperature, divergence)


def _terms_backward(dterms, student, teacher, label, stats, temperature, divergence):
    return reference.row_gradient(dterms, student, teacher, label, temperature, divergence)


def _loss(*arguments_and_need_grad):
    *arguments, need_grad = arguments_and_need_grad
    with torch.no_grad():
        loss, means, dstudent = reference.distill_loss(*arguments)
    return loss, means, dstudent if need_grad else dstudent.new_empty(0)


def _loss_into(dstudent, *arguments):
    loss, means, gradient = _loss(*arguments, True)
    dstudent.copy_(gradient)
    return loss, means


def _scale(dstudent, dloss):
    dstudent.mul_(dloss)


_SCHEMAS = {
    "reference_distill_terms(Tensor student, Tensor? teacher, Tensor? label, float temperature, int divergence)"
    " -> (Tensor, Tensor)": _terms,
    "reference_distill_terms_backward(Tensor dterms, Tensor student, Tensor? teacher, Tensor? label, Tensor stats,"
    " float temperature, int divergence) -> Tensor": _terms_backward,
    "reference_distill_loss(Tensor student, Tensor? teacher, Tensor? label, Tensor weights, Tensor? row_weight,"
    " Tensor? denominators, float temperature, int divergence, bool need_grad) -> (Tensor, Tensor, Tensor)": _loss,
    "reference_distill_loss_into_(Tensor(a!) dstudent, Tensor student, Tensor? teacher, Tensor? label, Tensor weights,"
    " Tensor? row_weight, Tensor? denominators, float temperature, int divergence) -> (Tensor, Tensor)": _loss_into,
    "reference_distill_scale_(Tensor(a!) dstudent, Tensor dloss) -> ()": _scale,
}
for _schema, _kernel in _SCHEMAS.items():
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_schema.partition("(")[0], _kernel, "CompositeExplicitAutograd")
