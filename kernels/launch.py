"""What launchers need: sizes, what they ask of a device, and descriptors of tensors for its copy engine."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own is traced for its compiler: 2 microseconds a call, seventy times this."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is not below n, of at least 1."""
    return 1 << (n - 1).bit_length()


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Of the device; on the meta device, where kernels are compiled and not run, those of an H200."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132 if device.type == "meta" else 2


compiled_for = 90  # the architecture that the meta device stands for, and the interpreter's


def architecture(device: torch.device) -> int:
    """Of the device: 90 for sm_90."""
    return _capability(device) if device.type == "cuda" else compiled_for


@lru_cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def describable(t: Tensor) -> bool:
    """Whether t ((K,)rows,columns) can be described to the copy engine: 16-bit numbers, rows that begin at 16 bytes."""
    rows = all(stride * t.element_size() % 16 == 0 for stride in t.stride()[:-1]) and t.data_ptr() % 16 == 0
    return t.element_size() == 2 and t.stride(-1) == 1 and t.stride(-2) >= t.shape[-1] and rows


def described(t: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Its descriptor, in blocks (1,rows,columns): (1,...) where the students share t."""
    K = 1 if t.dim() == 2 or t.stride(0) == 0 else t.shape[0]
    stride = t.stride(-2) * t.shape[-2] if K == 1 else t.stride(0)
    return TensorDescriptor(t, [K, *t.shape[-2:]], [stride, t.stride(-2), 1], [1, rows, columns])


_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}


def counter(device: torch.device) -> Tensor:
    """The number of finished programs (): 0, and the kernel leaves it 0.

    One for each stream, where launches never overlap. Replays of two captured graphs can, so each graph gets its own,
    cleared by the graph itself.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros((), dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _COUNTERS:
        _COUNTERS[key] = torch.zeros((), dtype=torch.int32, device=device)
    return _COUNTERS[key]
