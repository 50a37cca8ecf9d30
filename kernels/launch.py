"""Helpers of the launchers: sizes, device properties, and tensor descriptors for TMA loads."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. triton.cdiv takes 2 us a call on the host, seventy times as long."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is not below n >= 1."""
    return 1 << (n - 1).bit_length()


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """SMs of the device. On the meta device, where kernels are compiled but not run, those of an H200."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132 if device.type == "meta" else 2


compiled_for = 90  # the architecture assumed for the meta device and for the interpreter


def architecture(device: torch.device) -> int:
    """Compute capability of the device: 90 for sm_90."""
    return _capability(device) if device.type == "cuda" else compiled_for


@lru_cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def tma_readable(t: Tensor) -> bool:
    """Whether TMA can read t ((K,)rows,columns): 16-bit elements, dense rows that start on 16-byte boundaries."""
    rows = all(stride * t.element_size() % 16 == 0 for stride in t.stride()[:-1]) and t.data_ptr() % 16 == 0
    return t.element_size() == 2 and t.stride(-1) == 1 and t.stride(-2) >= t.shape[-1] and rows


def tma_descriptor(t: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """The TMA descriptor of t in blocks (1,rows,columns). Its first dimension is 1 if the students share t."""
    K = 1 if t.dim() == 2 or t.stride(0) == 0 else t.shape[0]
    stride = t.stride(-2) * t.shape[-2] if K == 1 else t.stride(0)
    return TensorDescriptor(t, [K, *t.shape[-2:]], [stride, t.stride(-2), 1], [1, rows, columns])


_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}


def counter(device: torch.device) -> Tensor:
    """The counter of finished programs (): 0 before a launch, and the kernel resets it to 0.

    One per stream: launches on a stream never overlap. Replays of two CUDA graphs can, so each captured graph gets a
    counter of its own and clears it.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros((), dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _COUNTERS:
        _COUNTERS[key] = torch.zeros((), dtype=torch.int32, device=device)
    return _COUNTERS[key]
