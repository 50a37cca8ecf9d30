"""The Triton kernels of TopK teachers against the reference in float64."""

import math

import pytest
import torch
from support import distill as support
from support.distill import CASES, assert_no_worse, codes_of, wide

from nanonet import reference_topk
from nanonet.backends import triton as backend
from nanonet.kernels import topk
from nanonet.reference_topk import Tail

TOPK_CASES = [case for case in CASES if case[0] != "mse" and case[1] in (None, 0.1)]
# the interpreter truncates to bfloat16
ATOL = support.ATOL if torch.cuda.is_available() else support.ATOL | {torch.bfloat16: 8e-3}
WEIGHTS = (0.7, 1.3, 0.4)


def known(teacher, k):
    """ids and logprobs of the k likeliest classes, in no order."""
    logprobs, ids = teacher.double().log_softmax(-1).topk(k)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(3))
    return ids[:, order], logprobs[:, order].float().clamp_max(0)


def check(student, ids, logprobs, tail, label, codes, row_weight=None):
    """The terms, their backward with an upstream that is 0 in places, and the loss."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student, ids, logprobs = (t.to(device) for t in (student, ids, logprobs))
    label = None if label is None else label.to(device)
    teacher, atol = (ids, logprobs, int(tail), label, *codes), ATOL[student.dtype]
    exact = (ids, logprobs.double(), int(tail), label, *codes)
    assert_no_worse(
        topk.distill_topk_terms_fwd(list(student), *teacher),
        reference_topk.distill_topk_terms(student, *teacher),
        reference_topk.distill_topk_terms(student.double(), *exact),
        4e-6 * max(1.0, codes[0] ** 2),
    )
    upstream = torch.randn(3, *student.shape[:2], generator=torch.Generator().manual_seed(1)).to(device)
    upstream[:, :, 1::4] = 0
    assert_no_worse(
        topk.distill_topk_terms_bwd(upstream, list(student), *teacher),
        reference_topk.topk_gradient(upstream, student, *teacher),
        reference_topk.topk_gradient(upstream.double(), student.double(), *exact),
        atol,
    )
    w = torch.tensor(WEIGHTS, device=device)
    weighing = label, w, row_weight, None
    got = topk.distill_topk_loss_fwd(list(student), *teacher[:3], *weighing, *codes, True)
    same = reference_topk.distill_topk_loss(student, *teacher[:3], *weighing, *codes)
    truth = reference_topk.distill_topk_loss(student.double(), *exact[:3], *wide(*weighing), *codes)
    for ours, torchs, true, allowed in zip(got, same, truth, (8e-6, 8e-6, atol), strict=True):
        assert_no_worse(ours, torchs, true, allowed)


# one class, some, all; more than a tile of 1,024 classes, and ragged; with and without what ce and peers write first
@pytest.mark.parametrize("tail", Tail)
@pytest.mark.parametrize("case", range(4))
def test_no_worse_than_torch(tail, case):
    K, N, C, k, dtype = [
        (1, 3, 9, 1, torch.float32),
        (2, 3, 40, 8, torch.bfloat16),
        (1, 2, 20, 20, torch.float16),
        (2, 2, 2051, 5, torch.float32),
    ][case]
    student, teacher, label = support.draw(K, N, C, dtype, seed=C)
    for divergence, beta in TOPK_CASES[(case + int(tail)) % 3 :: 3]:
        label = None if label is not None and K == 1 else label
        check(student, *known(teacher, k), tail, label, codes_of(divergence, beta, 2.0))


@pytest.mark.parametrize("mass,scale", [(1.0, 0.0), (1 - 1e-6, 10.0), (1e-6, 200.0), (1.0, 200.0)])
def test_any_mass_of_the_tail(mass, scale):
    """Of the teacher, and of students whose tail underflows in float32."""
    student, teacher, label = support.draw(2, 3, 60, torch.float32)
    ids = teacher.topk(4).indices
    logprobs = torch.full(ids.shape, math.log(mass / 4)).clamp_max(0)
    sure = student + torch.zeros_like(student).scatter_(-1, ids.expand(2, 3, 4), scale)
    for divergence in ("kl", "js", "tv"):
        check(sure, ids, logprobs, Tail.BUCKET, label, codes_of(divergence, None))


@pytest.mark.parametrize("tail", Tail)
def test_minus_infinity_fewer_classes_and_masked_rows(tail, device):
    student, teacher, label = support.draw(2, 5, 30, torch.float32)
    student[:, 1, 20:] = -torch.inf
    label[1] = 0
    ids, logprobs = known(teacher, 6)
    ids[2, 3:], logprobs[2, 3:] = -1, torch.nan
    ids[3] = -1
    row_weight = torch.tensor([1.0, 0.5, 1.0, 2.0, 0.0], device=device)
    for divergence in ("kl", "reverse_kl", "cross_entropy"):
        check(student, ids, logprobs, tail, label, codes_of(divergence, None, 2.0), row_weight)
    student[:, 1], student[:, 4] = 0, torch.nan
    w = torch.ones(3, device=device)
    given = [one.to(device) for one in student], ids.to(device), logprobs.to(device), int(tail), None, w
    for value in topk.distill_topk_loss_fwd(*given, row_weight, None, *codes_of("kl", None), True):
        assert value.isfinite().all()


def test_a_row_that_is_no_distribution_is_nan_alone(device):
    student, _, _ = support.draw(1, 5, 9, torch.float32)
    ids = torch.tensor([[0, 1], [1, 1], [7, 9], [2, 3], [-1, 4]])
    logprobs = torch.full((5, 2), -1.0)
    logprobs[3, 0] = 0.5
    given = [student[0].to(device)], ids.to(device), logprobs.to(device), 1, None
    terms = topk.distill_topk_terms_fwd(*given, 1.0, 0, 0.5)
    assert terms[1, 0].isnan().tolist() == [False, True, True, True, False]
    dstudent = topk.distill_topk_terms_bwd(torch.ones_like(terms), *given, 1.0, 0, 0.5)[0]
    assert dstudent.isnan().all(-1).tolist() == dstudent.isnan().any(-1).tolist() == [False, True, True, True, False]


def test_the_backend_serves_them_and_leaves_float64_and_many_classes_to_the_reference(device, monkeypatch):
    ops, called = backend.implementations(), []
    student, teacher, label = (t.to(device) for t in support.draw(2, 4, 30, torch.float32))
    ids, logprobs = known(teacher.float(), 5)
    monkeypatch.setattr(topk, "Known", lambda *given, known=topk.Known: called.append(1) or known(*given))
    for dtype, k in ((torch.float32, 5), (torch.float64, 5), (torch.float32, topk.MOST_CLASSES + 1)):
        if k > 5:
            student = torch.zeros(2, 4, k, device=device)
            ids, logprobs = known(student[0], k)
        given = list(student.to(dtype)), ids, logprobs, 1, None
        codes = 2.0, 0, 0.5
        terms = ops["distill_topk_terms"](*given, *codes)
        dstudent = ops["distill_topk_terms_backward"](torch.ones_like(terms), *given, *codes)
        w = torch.ones(3, dtype=terms.dtype, device=device)
        loss, means, _ = ops["distill_topk_loss"](*given, w, None, None, *codes, False)
        plain = reference_topk.distill_topk_terms(student.to(dtype), *given[1:], *codes)
        torch.testing.assert_close(terms, plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss, means.sum())
        assert dstudent.dtype == dtype
    assert len(called) == 3
