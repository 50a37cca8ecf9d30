"""Compile every kernel ahead of time, as its launcher would launch it. No GPU is needed.

    python -m nanonet.kernels.compile [--write FILE] [PART OF A NAME]

The launchers run on meta tensors, and their launches are compiled instead of run, so that dtypes, flags, blocks and
alignments are those of real launches. Prints for each case and architecture: registers per thread, bytes of shared
memory, and bytes spilled to the stack.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, create_function_from_signature

from nanonet.kernels import cohort_linear, distill, launch, topk
from nanonet.reference import Divergence

ARCHITECTURES = (80, 90, 100)
KL, REVERSE_KL, JS, MSE, SYMMETRIC_KL, SKEW_KL, SKEW_REVERSE_KL, TV, CROSS_ENTROPY = map(int, Divergence)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def tensor(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def loss(K: int, N: int, C: int, dtype: torch.dtype, divergence: int = KL, temperature: float = 2.0, parts="tyr"):
    """parts: t teacher, y label, r row_weight (N,), k row_weight (K,N)."""
    teacher = tensor(N, C, dtype=dtype) if "t" in parts else None
    label = tensor(N, dtype=torch.int64) if "y" in parts else None
    row_weight = tensor(K, N) if "k" in parts else tensor(N) if "r" in parts else None
    student = tensor(K, N, C, dtype=dtype)
    distill.distill_loss_fwd(
        student,
        teacher,
        label,
        tensor(3),
        row_weight,
        None,
        1.0 if divergence == MSE else temperature,
        divergence,
        0.5,
        True,
    )


def terms(K: int, N: int, C: int, dtype: torch.dtype, divergence: int = KL, temperature: float = 2.0):
    student, teacher, label = tensor(K, N, C, dtype=dtype), tensor(N, C, dtype=dtype), tensor(N, dtype=torch.int64)
    _, stats = distill.distill_terms_fwd(student, teacher, label, temperature, divergence, 0.5)
    distill.distill_terms_bwd(tensor(3, K, N), student, teacher, label, stats, temperature, divergence, 0.5)


def top(K: int, N: int, C: int, k: int, dtype: torch.dtype, divergence: int = KL, tail: int = 1, label: bool = True):
    ids, logprobs = torch.empty(N, k, dtype=torch.int64, device="meta"), tensor(N, k)
    y = torch.empty(N, dtype=torch.int64, device="meta") if label else None
    student = [tensor(N, C, dtype=dtype)] * K
    topk.distill_topk_loss_fwd(student, ids, logprobs, tail, y, tensor(3), None, None, 2.0, divergence, 0.5, True)


def linear(K: int, M: int, D: int, F: int, R: int, dtype: torch.dtype, shared_x=False, shared_w=False, dropout=0.1):
    """Forward, and backward of everything but the weight."""
    x = tensor(M, D, dtype=dtype) if shared_x else tensor(K, M, D, dtype=dtype)
    weight = tensor(F, D, dtype=dtype) if shared_w else tensor(K, F, D, dtype=dtype)
    a, b = tensor(K, R, D, dtype=dtype), tensor(K, F, R, dtype=dtype)
    lora = (a, b, tensor(K, dtype=dtype), torch.empty((), dtype=torch.int64, device="meta"), dropout)
    y, low = cohort_linear.cohort_linear_fwd(x, weight, tensor(K, F, dtype=dtype), *lora)
    cohort_linear.cohort_linear_bwd(y, x, low, weight, *lora, shared_x, [True, False, True, True, True])


CASES: dict[str, Callable[[], object]] = {
    # rows in registers: small cohorts, every divergence, the longest row
    "loss N=1024 C=100 K=4 bf16": partial(loss, 4, 1024, 100, BF16),
    "loss N=32 C=4 K=2 fp32": partial(loss, 2, 32, 4, FP32),
    "loss N=1024 C=128 K=4 fp16 reverse_kl": partial(loss, 4, 1024, 128, FP16, REVERSE_KL),
    "loss N=1024 C=128 K=4 bf16 js": partial(loss, 4, 1024, 128, BF16, JS, parts="tyk"),
    "loss N=1024 C=128 K=4 bf16 mse": partial(loss, 4, 1024, 128, BF16, MSE),
    "loss N=1024 C=128 K=4 bf16 symmetric_kl": partial(loss, 4, 1024, 128, BF16, SYMMETRIC_KL),
    "loss N=1024 C=128 K=4 bf16 skew_kl": partial(loss, 4, 1024, 128, BF16, SKEW_KL),
    "loss N=1024 C=128 K=4 bf16 skew_reverse_kl": partial(loss, 4, 1024, 128, BF16, SKEW_REVERSE_KL),
    "loss N=1024 C=128 K=4 bf16 tv": partial(loss, 4, 1024, 128, BF16, TV),
    "loss N=1024 C=128 K=4 bf16 cross_entropy": partial(loss, 4, 1024, 128, BF16, CROSS_ENTROPY),
    "loss N=1024 C=1000 K=1 bf16": partial(loss, 1, 1024, 1000, BF16),
    "loss N=8192 C=2048 K=4 bf16 js": partial(loss, 4, 8192, 2048, BF16, JS),
    # rows in tiles: every divergence, the widest cohort
    "loss N=8192 C=128256 K=4 bf16": partial(loss, 4, 8192, 128256, BF16),
    "loss N=8192 C=128256 K=4 bf16 unit": partial(loss, 4, 8192, 128256, BF16, temperature=1.0),
    "loss N=8192 C=128256 K=4 fp32": partial(loss, 4, 8192, 128256, FP32),
    "loss N=8192 C=32000 K=2 bf16 js": partial(loss, 2, 8192, 32000, BF16, JS),
    "loss N=8192 C=32000 K=2 bf16 mse": partial(loss, 2, 8192, 32000, BF16, MSE, parts="t"),
    "loss N=8192 C=50257 K=4 bf16 reverse_kl": partial(loss, 4, 8192, 50257, BF16, REVERSE_KL),
    "loss N=8192 C=32000 K=4 bf16 symmetric_kl": partial(loss, 4, 8192, 32000, BF16, SYMMETRIC_KL),
    "loss N=8192 C=32000 K=4 bf16 skew_kl": partial(loss, 4, 8192, 32000, BF16, SKEW_KL),
    "loss N=8192 C=32000 K=4 bf16 skew_reverse_kl": partial(loss, 4, 8192, 32000, BF16, SKEW_REVERSE_KL),
    "loss N=8192 C=32000 K=4 bf16 tv": partial(loss, 4, 8192, 32000, BF16, TV),
    "loss N=8192 C=32000 K=4 bf16 cross_entropy": partial(loss, 4, 8192, 32000, BF16, CROSS_ENTROPY),
    "loss N=1024 C=1000 K=8 bf16": partial(loss, 8, 1024, 1000, BF16),
    # terms and their backward
    "terms N=1024 C=100 K=4 bf16": partial(terms, 4, 1024, 100, BF16),
    "terms N=8192 C=128256 K=4 bf16": partial(terms, 4, 8192, 128256, BF16),
    "terms N=8192 C=32000 K=4 fp32 js": partial(terms, 4, 8192, 32000, FP32, JS),
    # k likeliest classes: each tail, a divergence of each kind
    "top N=8192 C=128256 K=1 k=64 bf16": partial(top, 1, 8192, 128256, 64, BF16, label=False),
    "top N=8192 C=128256 K=4 k=64 bf16 js": partial(top, 4, 8192, 128256, 64, BF16, JS),
    "top N=1024 C=32000 K=2 k=1000 fp32 renormalised skew_reverse_kl": partial(
        top, 2, 1024, 32000, 1000, FP32, SKEW_REVERSE_KL, 2
    ),
    "top N=1024 C=32000 K=2 k=20 fp16 left out symmetric_kl": partial(top, 2, 1024, 32000, 20, FP16, SYMMETRIC_KL, 0),
    # a large layer; encoder layers; a shared input; rows aligned to 16 bytes but not to 32; ragged rows; exact float32
    "linear M=8192 D=F=4096 R=16 K=1 bf16": partial(linear, 1, 8192, 4096, 4096, 16, BF16, shared_w=True, dropout=0.0),
    "linear M=2048 D=F=768 R=8 K=4 bf16": partial(linear, 4, 2048, 768, 768, 8, BF16, dropout=0.0),
    "linear M=2048 D=3072 F=768 R=64 K=4 bf16 dropout": partial(linear, 4, 2048, 3072, 768, 64, BF16),
    "linear M=2048 D=768 F=3072 R=64 K=4 fp16 shared x and W": partial(
        linear, 4, 2048, 768, 3072, 64, FP16, True, True
    ),
    "linear M=2048 D=F=776 R=24 K=4 bf16": partial(linear, 4, 2048, 776, 776, 24, BF16, dropout=0.0),
    "linear M=100 D=770 F=33 R=5 K=3 bf16 shared x": partial(linear, 3, 100, 770, 33, 5, BF16, True),
    "linear M=2048 D=F=768 R=8 K=2 fp32": partial(linear, 2, 2048, 768, 768, 8, FP32),
    "linear M=2048 D=F=768 R=64 K=2 fp32": partial(linear, 2, 2048, 768, 768, 64, FP32),
    "scale bf16": lambda: distill.distill_scale(tensor(1 << 20, dtype=BF16), tensor()),
}


@contextmanager
def recorded(architecture: int) -> Iterator[list[tuple[JITFunction, tuple, dict[str, Any]]]]:
    """Record the launches made in this context, for a GPU of this architecture, instead of running them."""
    launches: list[tuple[JITFunction, tuple, dict[str, Any]]] = []
    run, before = JITFunction.run, launch.compiled_for

    def record(self, *args, grid, warmup, **kwargs):
        launches.append((self, args, kwargs))

    JITFunction.run, launch.compiled_for = record, architecture
    try:
        yield launches
    finally:
        JITFunction.run, launch.compiled_for = run, before


def compiled(kernel: JITFunction, args: tuple, kwargs: dict[str, Any], architecture: int):
    """The kernel, compiled as Triton would for this launch."""
    target = GPUTarget("cuda", architecture, 32)
    backend = CUDABackend(target)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(*args, debug=False, **kwargs)
    names = {parameter.name for parameter in kernel.params}
    options = {name: value for name, value in kwargs.items() if name not in names}
    options, signature, constexprs, attrs = kernel._pack_args(backend, options, bound, specialization, options)
    source = ASTSource(kernel, signature, constexprs, attrs)
    return triton.compile(source, target=target, options=options.__dict__)


def resources(cubin: Path) -> dict[str, int]:
    """Registers, stack and local bytes, from cuobjdump."""
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}  # type: ignore[index]


def table(part: str = "", architectures: Sequence[int] = ARCHITECTURES) -> dict[str, dict[str, dict[str, int]]]:
    """{case and kernel: {architecture: registers, shared, spilled}}"""
    rows: dict[str, dict[str, dict[str, int]]] = {}
    for name, case in CASES.items():
        if part not in name:
            continue
        for architecture in architectures:
            with recorded(architecture) as launches:
                case()
            seen: Counter[str] = Counter()
            for kernel, args, kwargs in launches:
                seen[kernel.__name__] += 1
                binary = compiled(kernel, args, kwargs, architecture)
                used = resources(Path(binary.metadata_group[f"{kernel.__name__}.cubin"]))
                row = rows.setdefault(f"{name}: {kernel.__name__} {seen[kernel.__name__]}", {})
                row[f"sm_{architecture}"] = {
                    "registers": used["REG"],
                    "shared": binary.metadata.shared,
                    "spilled": used["STACK"] + used["LOCAL"],
                }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile every Triton kernel ahead of time.")
    parser.add_argument("part", nargs="?", default="", help="only the cases whose name contains this")
    parser.add_argument("--architectures", nargs="+", type=int, default=ARCHITECTURES, help="all by default")
    parser.add_argument("--write", metavar="FILE", help="write the table to this JSON file, by version of Triton")
    options = parser.parse_args()
    tables = {triton.__version__: table(options.part, options.architectures)}
    file = Path(options.write) if options.write else None
    if file is not None and file.exists():
        before = json.loads(file.read_text())
        others = before.get(triton.__version__, {}) if options.part else {}
        tables = before | {triton.__version__: others | tables[triton.__version__]}
    text = json.dumps(tables, indent=1)
    # one line for each architecture
    text = re.sub(r"\{\s+(\"registers\": \d+),\s+(\"shared\": \d+),\s+(\"spilled\": \d+)\s+\}", r"{\1, \2, \3}", text)
    if file is None:
        print(text)
    else:
        file.write_text(text + "\n")


if __name__ == "__main__":
    main()
