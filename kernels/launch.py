"""What launchers need: sizes, and what they ask of a device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


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
