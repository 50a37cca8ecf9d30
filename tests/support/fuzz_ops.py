"""Wild arguments for the raw ops of the loss, by hypothesis, for a process that may die of them.

    python tests/support/fuzz_ops.py EXAMPLES [SEED]

Whatever comes, an op answers with an exception or with numbers of the shapes that its contract gives; what it accepts
must fit that contract. Exits 0 if so.
"""

from __future__ import annotations

import sys

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import nanonet  # noqa: F401  registers the ops

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OTHERS = [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool, torch.complex64]
OPS = torch.ops.nanonet
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
    if any(n > 1000 for n in shape):
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
def calls(draw):
    wild = draw(st.booleans())
    leading = tuple(draw(st.lists(size, max_size=3)))
    K, C = draw(size), draw(size)
    each, stacked = draw(st.booleans()), draw(st.booleans())

    def of(shape, dtypes=FLOATS, absent=False):
        if absent and draw(st.booleans()):
            return None
        return draw(tensors(shape, dtypes, wild))

    teacher = of((*leading, C), absent=True)
    label = of(leading, [torch.int64, torch.int32], absent=True)
    if label is not None and label.dtype in (torch.int64, torch.int32) and label.numel() < 10**6 and not wild:
        label = torch.where(label >= C, -100, label.abs() % max(C, 1))
    student = [of((*leading, C)) for _ in range(K)] if each else of((K, *leading, C) if stacked else (*leading, C))
    options = draw(st.sampled_from([1.0, 2.0, 2.5] + [0.0, -1.0, float("nan")] * wild)), draw(st.integers(-1, 9))
    options = (*options, draw(st.sampled_from([0.0, 0.1, 0.5, 1.0, float("nan")])))
    weights = of((3,), FLOATS[:2])
    row_weight = of(leading if draw(st.booleans()) else (K, *leading), [*FLOATS, torch.bool, torch.int64], absent=True)
    denominators = of((2,) if draw(st.booleans()) else (2, K), FLOATS[:2], absent=True)
    dterms, dloss = of((3, K, *leading)), of(())
    stats = of((K + 1, torch.Size(leading).numel(), 4), FLOATS[:2])
    return student, teacher, label, options, (weights, row_weight, denominators), dterms, stats, dloss


def expected(student, teacher, label):
    """K, the leading shape and C, or None where the shapes contradict each other."""
    each = isinstance(student, list)
    if each and (not student or len({(s.shape, s.dtype) for s in student}) > 1):
        return None
    first = student[0] if each else student
    dims = first.dim() - 1 if each else None
    if dims is None:
        dims = teacher.dim() - 1 if teacher is not None else label.dim() if label is not None else first.dim() - 2
    stacked = not each and first.dim() - 1 != dims
    if dims < 0 or first.dim() < 1 or first.dim() - 1 - stacked != dims:
        return None
    leading, C = first.shape[stacked:-1], first.shape[-1]
    K = len(student) if each else first.shape[0] if stacked else 1
    fits = K > 0 and C > 0 and (teacher is None or teacher.shape == (*leading, C))
    return (K, leading, C) if fits and (label is None or label.shape == leading) else None


def attempt(op, *arguments):
    try:
        return op(*arguments)
    except REFUSALS:
        return None


@given(calls())
def fuzz(call):
    student, teacher, label, options, weighing, dterms, stats, dloss = call
    each = isinstance(student, list)
    end = "_each" if each else ""
    shape = expected(student, teacher, label)
    first = (student[0] if student else torch.empty(0)) if each else student

    terms = attempt(getattr(OPS, f"distill_terms{end}"), student, teacher, label, *options)
    if terms is not None:
        K, leading, C = shape
        assert terms[0].shape == (3, K, *leading)
    backward = getattr(OPS, f"distill_terms{end}_backward")
    dstudent = attempt(backward, dterms, student, teacher, label, stats if terms is None else terms[1], *options)
    if dstudent is not None:
        K, leading, C = shape
        assert dterms.shape == (3, K, *leading)
        assert dstudent.shape == ((K, *leading, C) if each else student.shape) and dstudent.dtype == first.dtype
    loss = attempt(getattr(OPS, f"distill_loss{end}"), student, teacher, label, *weighing, *options, True)
    if loss is not None:
        K, leading, C = shape
        weights, row_weight, denominators = weighing
        assert weights.shape == (3,) and loss[1].shape == (3, K)
        assert row_weight is None or row_weight.shape in (leading, (K, *leading))
        assert denominators is None or denominators.shape in ((2,), (2, K))
        assert loss[2].shape == ((K, *leading, C) if each else student.shape)
        if not each:
            attempt(OPS.distill_loss_into_, torch.empty_like(first), student, teacher, label, *weighing, *options)
        attempt(OPS.distill_scale_, loss[2], dloss)
    if not each and max(first.numel(), dterms.numel()) < 10**6:
        room = dterms.to(first.dtype)
        attempt(OPS.distill_loss_into_, room, student, teacher, label, *weighing, *options)
        attempt(OPS.distill_scale_, first.clone(), dloss)


def settings_for(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
    )


if __name__ == "__main__":
    target = settings_for(int(sys.argv[1]))(fuzz)
    if sys.argv[2:]:
        target = seed(int(sys.argv[2]))(target)
    target()
