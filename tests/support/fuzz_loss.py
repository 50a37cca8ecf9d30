"""Wild calls of the loss's ops against a teacher of all classes."""

from __future__ import annotations

import torch
from fuzz_tensors import FLOATS, attempt, labels, options, size, tensors, weighing
from hypothesis import given
from hypothesis import strategies as st


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
    label = draw(labels(leading, C, wild)) if draw(st.booleans()) else None
    student = [of((*leading, C)) for _ in range(K)] if each else of((K, *leading, C) if stacked else (*leading, C))
    by = weighing(of, K, leading, draw)
    dterms, dloss = of((3, K, *leading)), of(())
    stats = of((K + 1, torch.Size(leading).numel(), 4), FLOATS[:2])
    return student, teacher, label, draw(options(wild)), by, dterms, stats, dloss


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


@given(calls())
def fuzz_loss(call):
    student, teacher, label, codes, by, dterms, stats, dloss = call
    each = isinstance(student, list)
    end = "_each" if each else ""
    shape = expected(student, teacher, label)
    first = (student[0] if student else torch.empty(0)) if each else student

    terms = attempt(f"distill_terms{end}", student, teacher, label, *codes)
    if terms is not None:
        K, leading, C = shape
        assert terms[0].shape == (3, K, *leading)
    backward = f"distill_terms{end}_backward"
    dstudent = attempt(backward, dterms, student, teacher, label, stats if terms is None else terms[1], *codes)
    if dstudent is not None:
        K, leading, C = shape
        assert dterms.shape == (3, K, *leading)
        assert dstudent.shape == ((K, *leading, C) if each else student.shape) and dstudent.dtype == first.dtype
    loss = attempt(f"distill_loss{end}", student, teacher, label, *by, *codes, True)
    if loss is not None:
        K, leading, C = shape
        weights, row_weight, denominators = by
        assert weights.shape == (3,) and loss[1].shape == (3, K)
        assert row_weight is None or row_weight.shape in (leading, (K, *leading))
        assert denominators is None or denominators.shape in ((2,), (2, K))
        assert loss[2].shape == ((K, *leading, C) if each else student.shape)
        if not each:
            attempt("distill_loss_into_", torch.empty_like(first), student, teacher, label, *by, *codes)
        attempt("distill_scale_", loss[2], dloss)
    if not each and max(first.numel(), dterms.numel()) < 10**6:
        room = dterms if dterms.is_complex() else dterms.to(first.dtype)
        attempt("distill_loss_into_", room, student, teacher, label, *by, *codes)
        attempt("distill_scale_", first.clone(), dloss)
