"""This installation: versions, devices, and the backend of each op."""

from __future__ import annotations

import os
from typing import Any

import torch

from nanonet import backends
from nanonet.backends import cpp, cuda, gate
from nanonet.versions import versions

KEYS = ("CPU", "CUDA")


def facts() -> dict[str, Any]:
    """versions, devices, cpu {threads, native}, cuda {cuda_arches, cuda_toolkit} or None, gpu_kernels:
    what was checked on each GPU and when, and ops {op: {CPU, CUDA: its backend, and the reason}}."""
    native = cpp.build_info()
    if native:
        native["isa_forced"] = os.environ.get("NANONET_CPU_ISA")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "devices": ["cpu", *(f"cuda:{i} ({name})" for i, name in enumerate(names))],
        "cpu": {"threads": torch.get_num_threads(), "native": native or None},
        "cuda": cuda.build_info() or None,
        "gpu_kernels": [gate.state(i) for i in range(len(names))],
        "ops": {op: {key: _served(op, key) for key in KEYS} for op in backends.OPS},
    }


def _served(op: str, key: str) -> str:
    served = backends.served_by(op, key)
    if served == "kernel":
        return served
    if key == "CUDA" and not torch.cuda.is_available():
        return f"{served}: torch finds no CUDA device"
    if key == "CUDA" and backends.registered(op, key):
        return f"{served}: {gate.state(0)}"
    return f"{served}: {backends.MISSING.get(key, 'no faster kernel for this op on this device')}"


def _cuda_kernels(built: dict[str, Any] | None) -> str:
    if built is None:
        return f"none: {cuda.load()}"
    return f"for {', '.join(map(str, built['cuda_arches']))}, by nvcc {built['cuda_toolkit']}"


def lines(found: dict[str, Any]) -> list[str]:
    """`facts()` for a person."""
    native = found["cpu"]["native"]
    if native:
        compiled, used = ", ".join(native["isa_compiled"]), native["isa_in_use"]
        why = "by NANONET_CPU_ISA" if native["isa_forced"] else "the widest that this CPU has"
        built = [
            f"built with     {native['compiler']}",
            f"compiled for   {compiled}",
            f"in use         {used} ({why}; set NANONET_CPU_ISA to choose another)",
        ]
    else:
        built = [f"native         none: {backends.MISSING.get('CPU', 'not built')}"]
    width = max(map(len, found["ops"]))
    ops = [f"  {op:<{width}}  {key:<4}  {served}" for op, by in found["ops"].items() for key, served in by.items()]
    return [
        *(f"{name:<14} {version or 'not installed'}" for name, version in found["versions"].items()),
        f"{'devices':<14} {', '.join(found['devices'])}",
        f"{'cpu threads':<14} {found['cpu']['threads']}",
        *built,
        f"{'CUDA kernels':<14} {_cuda_kernels(found['cuda'])}",
        *(f"{f'cuda:{i}':<14} {state}" for i, state in enumerate(found["gpu_kernels"])),
        "",
        "who serves what",
        *ops,
    ]
