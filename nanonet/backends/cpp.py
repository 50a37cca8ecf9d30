"""The compiled CPU kernels: `nanonet._C` registers them where they were built.

The environment variable NANONET_CPU_ISA (baseline, avx2, avx512) forces an instruction set; by default the
widest that the CPU has is used. An unknown value, or one that the CPU lacks, raises ImportError.

Freed gradients of 1 MB and more are held for the next call, at most NANONET_POOL_MB of them (256; 0 turns that off):
fresh memory costs page faults.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

NOT_BUILT = "nanonet._C was not built (no C++ compiler at install time): the reference serves the CPU"


def load() -> str | None:
    """Import the module, which registers the ops for the CPU; the reason where it was never built, else None.

    A module that was built but does not load raises its own error: a broken install must not be a slow one.
    """
    if importlib.util.find_spec("nanonet._C") is None:
        return NOT_BUILT
    importlib.import_module("nanonet._C")
    return None


def build_info() -> dict[str, Any]:
    """version, compiler, isa_compiled, isa_supported, isa_in_use, cuda_arches; {} where the module was never built."""
    if load() is not None:
        return {}
    return importlib.import_module("nanonet._C").build_info()


def release_pool() -> int:
    """Give what is held for the next gradients back to the system; how many bytes that was."""
    return 0 if load() is not None else importlib.import_module("nanonet._C").release_pool()
