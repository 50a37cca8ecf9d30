"""Wild calls of the loss's ops against a teacher that is known by its likeliest classes."""

from __future__ import annotations

import torch
from fuzz_tensors import FLOATS, attempt, labels, options, size, tensors, weighing
from hypothesis import given
from hypothesis import strategies as st

BAD_IDS = [-2, -100, 1 << 31, 1 << 62, -(1 << 62)]
BAD_LOGPROBS = [float("nan"), float("inf"), 1.0, 1e30, -1e30]


@st.composite
def teachers(draw, leading: tuple[int, ...], C: int, wild: bool):
    """ids and logprobs (...,k): most of them a distribution's, some with one number that is none."""
    k = min(draw(size), C) if draw(st.booleans()) else draw(size)
    if wild and draw(st.booleans()):
        like = draw(st.sampled_from([(*leading, k), leading, (k,), (*leading, k, 1)]))
        return draw(tensors(like, [torch.int64], True)), draw(tensors(like, FLOATS, True))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    scores = torch.randn(*leading, max(C, k), generator=g).log_softmax(-1)
    logprobs, ids = scores.topk(k, -1) if scores.shape[-1] else (scores, scores.long())
    ids = torch.where(torch.rand(ids.shape, generator=g) < 0.1, -1, ids)
    if ids.numel() and draw(st.integers(0, 3)) == 0:
        ids.view(-1)[-1], logprobs.view(-1)[-1] = (
            draw(st.sampled_from([0, *BAD_IDS])),
            draw(st.sampled_from(BAD_LOGPROBS)),
        )
    if draw(st.booleans()):
        ids = ids.mT.contiguous().mT if ids.dim() >= 2 else ids
        logprobs = torch.stack([logprobs, logprobs], -1)[..., 0]
    narrow = ids.numel() == 0 or ids.abs().max() < 1 << 31
    ids = ids.to(draw(st.sampled_from([torch.int64, torch.int32]))) if narrow else ids
    return ids, logprobs.to(draw(st.sampled_from(FLOATS)))


@st.composite
def calls(draw):
    wild = draw(st.booleans())
    leading = tuple(draw(st.lists(size, max_size=3)))
    K, C = draw(size), draw(st.sampled_from([1, 2, 3, 5, 17, 49, 1030]))

    def of(shape, dtypes=FLOATS, absent=False):
        if absent and draw(st.booleans()):
            return None
        return draw(tensors(shape, dtypes, wild))

    dtype = [draw(st.sampled_from(FLOATS))] if draw(st.booleans()) else FLOATS
    student = [of((*leading, C), dtype) for _ in range(K)]
    known = (*draw(teachers(leading, C, wild)), draw(st.sampled_from([0, 1, 2, 2, -1, 3, 1 << 40])))
    label = draw(labels(leading, C, wild)) if draw(st.booleans()) else None
    return student, known, label, draw(options(wild)), weighing(of, K, leading, draw), of((3, K, *leading))


def check_contract(student, known, label) -> None:
    """What an op has accepted."""
    ids, logprobs, tail = known
    leading, C = student[0].shape[:-1], student[0].shape[-1]
    assert len({(s.shape, s.dtype) for s in student}) == 1 and C > 0 and tail in (0, 1, 2)
    assert ids.shape[:-1] == leading and ids.shape == logprobs.shape and 1 <= ids.shape[-1] <= C
    assert ids.dtype in (torch.int64, torch.int32) and logprobs.dtype in FLOATS
    assert label is None or label.shape == leading
    rows = ids.reshape(-1, ids.shape[-1]).tolist()
    for row in rows:
        known_ids = [i for i in row if i != -1]
        assert all(0 <= i < C for i in known_ids) and len(set(known_ids)) == len(known_ids)
    assert not (logprobs[ids >= 0] > 0).any()


@given(calls())
def fuzz_topk(call):
    student, known, label, codes, by, dterms = call
    terms = attempt("distill_topk_terms", student, *known, label, *codes)
    if terms is not None:
        check_contract(student, known, label)
        assert terms.shape == (3, len(student), *student[0].shape[:-1])
    dstudent = attempt("distill_topk_terms_backward", dterms, student, *known, label, *codes)
    if dstudent is not None:
        check_contract(student, known, label)
        assert dterms.shape == (3, len(student), *student[0].shape[:-1])
        assert dstudent.shape == (len(student), *student[0].shape) and dstudent.dtype == student[0].dtype
    for need_grad in (True, False):
        loss = attempt("distill_topk_loss", student, *known, label, *by, *codes, need_grad)
        if loss is None:
            continue
        check_contract(student, known, label)
        weights, row_weight, denominators = by
        K, leading = len(student), student[0].shape[:-1]
        assert weights.shape == (3,) and loss[0].shape == () and loss[1].shape == (3, K)
        assert row_weight is None or row_weight.shape in (leading, (K, *leading))
        assert denominators is None or denominators.shape in ((2,), (2, K))
        assert loss[2].shape == ((K, *student[0].shape) if need_grad else (0,))
