"""Wild tensors for the raw ops, by hypothesis, and the one way in which the fuzzers call."""

from __future__ import annotations

import faulthandler
import math

import torch
from hypothesis import strategies as st

import nanonet  # noqa: F401  registers the ops

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OTHERS = [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool, torch.complex64]
REFUSALS = (MemoryError, RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)
size = st.sampled_from([0, 1, 2, 3, 4, 5, 17, 49])
# products of these pass int64
huge = st.sampled_from(
    [(1 << 30, 1 << 30, 1), (1 << 29, 1 << 29, 1), (1, 1 << 40, 1 << 21), (3, 1 << 60, 2), (1 << 40, 0, 3)]
)


@st.composite
def tensors(draw, wanted: tuple[int, ...], dtypes: list[torch.dtype], wild: bool):
    """The shape that is wanted or, if wild, perhaps another; any strides."""
    shape, dtype = wanted, draw(st.sampled_from(dtypes))
    if wild:
        shape = draw(st.one_of(st.just(wanted), st.lists(size, max_size=5).map(tuple), huge))
        dtype = draw(st.sampled_from([*dtypes, *dtypes, *OTHERS]))
    if any(n > 2000 for n in shape) or math.prod(shape) > 10**6:
        return torch.zeros((), dtype=dtype).expand(shape)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    layout = draw(st.sampled_from(["plain", "wide", "swapped", "expanded", "strided"]))
    if layout == "expanded" and shape:
        value = torch.randn(1, *shape[1:], generator=generator).expand(shape)
    else:
        value = torch.randn(shape, generator=generator)
    value = (3 * value).to(dtype)
    if layout == "wide" and shape:
        value = torch.cat([value, value], -1)[..., : shape[-1]]
    if layout == "swapped":
        value = value.mT.contiguous().mT if value.dim() >= 2 else value
    if layout == "strided" and shape:
        value = torch.stack([value, value], -1)[..., 0]
    return value


@st.composite
def options(draw, wild: bool):
    """temperature, divergence, beta"""
    temperature = draw(st.sampled_from([1.0, 2.0, 2.5] + [0.0, -1.0, float("nan"), float("inf")] * wild))
    return temperature, draw(st.integers(-1, 9)), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0, float("nan")]))


@st.composite
def labels(draw, leading: tuple[int, ...], C: int, wild: bool):
    label = draw(tensors(leading, [torch.int64, torch.int32], wild))
    if label.dtype in (torch.int64, torch.int32) and label.numel() < 10**6 and not wild:
        label = torch.where(label >= C, -100, label.abs() % max(C, 1))
    return label


def weighing(of, K: int, leading: tuple[int, ...], draw):
    """weights, row_weight, denominators"""
    weights = of((3,), FLOATS[:2])
    rows = leading if draw(st.booleans()) else (K, *leading)
    row_weight = of(rows, [*FLOATS, torch.bool, torch.int64], absent=True)
    denominators = of((2,) if draw(st.booleans()) else (2, K), FLOATS[:2], absent=True)
    return weights, row_weight, denominators


calls_made, called = 0, set()


def attempt(name: str, *arguments):
    """What the op gives, as a tuple or a tensor; None where it refuses."""
    global calls_made
    calls_made += 1
    called.add(name)
    faulthandler.dump_traceback_later(60, exit=True)  # a call that never ends
    try:
        found = getattr(torch.ops.nanonet, name)(*arguments)
    except REFUSALS:
        return None
    finally:
        faulthandler.cancel_dump_traceback_later()
    return () if found is None else found
