"""Load the compiled and the Triton kernels that this machine has, and say who serves what."""

from __future__ import annotations

import torch

from nanonet.backends import cpp, cuda, gate, triton

OPS = (
    "distill_terms",
    "distill_terms_backward",
    "distill_loss",
    "distill_loss_into_",
    "distill_scale_",
    "distill_topk_terms",
    "distill_topk_terms_backward",
    "distill_topk_loss",
    "cohort_linear",
    "cohort_linear_backward",
)
MISSING: dict[str, str] = {}


def load() -> None:
    """Register the kernels of every backend; a missing part is noted in MISSING, a broken part raises."""
    gate.forced()  # a wrong value must fail here, not in the first step
    # the compiled CUDA kernels before Triton's, which take only what is left: they cost less to call
    for part, loader in (("CPU", cpp.load), ("CUDA C++", cuda.load), ("CUDA", triton.load)):
        reason = loader()
        if reason is not None:
            MISSING[part] = reason


def registered(op: str, key: str) -> bool:
    """Whether a kernel of `nanonet::<op>` is registered for a dispatch key ("CPU", "CUDA")."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"nanonet::{op}", key)


def served_by(op: str, key: str) -> str:
    """Who serves `nanonet::<op>` for a dispatch key: "kernel" or "reference"; of GPUs, any of them."""
    if key == "CUDA":
        kernels = {gate.TRITON} if op.startswith("cohort_linear") else gate.KERNELS
        if not any(gate.passed(i) & kernels for i in range(torch.cuda.device_count())):
            return "reference"
    return "kernel" if registered(op, key) else "reference"
