"""TopK teachers: the ops against the definition in float64, their parts of torch, and what they refuse."""

import itertools
import math

import pytest
import torch
from support.distill import CASES, DTYPES, assert_no_worse, draw
from torch.library import opcheck

from nanonet import TopK, distill_loss, distill_terms, reference, reference_topk
from nanonet.ops.topk import TAILS
from nanonet.reference import DEFAULT_BETA, DIVERGENCES
from nanonet.reference_topk import LEAST_TAIL

TOPK_CASES = [case for case in CASES if case[0] != "mse" and case[1] in (None, 0.1, 0.5)]
OPS = torch.ops.nanonet


def known(teacher, k, tail=True, dtype=None):
    """The k likeliest classes of teacher logits, in no order."""
    logprobs, ids = teacher.double().log_softmax(-1).topk(k)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(3))
    return TopK(ids[..., order], logprobs[..., order].to(dtype or teacher.dtype).clamp_max(0), tail)


def naive(student, teacher, temperature, divergence, beta):
    """D of each row as a loop over its classes: (N,)."""
    b = DEFAULT_BETA.get(divergence) if beta is None else beta
    of_class = {
        "kl": lambda p, q: p * (p / q).log() if p > 0 else 0 * q,
        "reverse_kl": lambda p, q: q * (q / p).log(),
        "tv": lambda p, q: (p - q).abs() / 2,
        "cross_entropy": lambda p, q: -p * q.log(),
    }
    kl = of_class["kl"]
    of_class["js"] = lambda p, q: b * kl(p, b * p + (1 - b) * q) + (1 - b) * kl(q, b * p + (1 - b) * q)
    of_class["symmetric_kl"] = lambda p, q: b * kl(p, q) + (1 - b) * kl(q, p)
    of_class["skew_kl"] = lambda p, q: kl(p, b * p + (1 - b) * q)
    of_class["skew_reverse_kl"] = lambda p, q: kl(q, b * q + (1 - b) * p)
    rows = []
    for s, ids, logprobs in zip(student, teacher.ids, teacher.logprobs, strict=True):
        every = torch.softmax(s / temperature, -1)
        pairs = [(l.double().exp(), every[i]) for i, l in zip(ids, logprobs, strict=True) if i >= 0]
        p_sum, q_sum = (sum((pair[i] for pair in pairs), torch.tensor(0.0).double()) for i in (0, 1))
        if teacher.tail == "renormalise":
            pairs = [(p / p_sum, q / q_sum) for p, q in pairs]
        if teacher.tail is True and len(pairs) < len(s):
            outside = [c for c in range(len(s)) if c not in ids.tolist()]
            pairs.append(((1 - p_sum).clamp_min(LEAST_TAIL), every[outside].sum()))
        rows.append(temperature**2 * sum((of_class[divergence](p, q) for p, q in pairs), 0 * s.sum()))
    return torch.stack(rows)


@pytest.mark.parametrize("divergence,beta", TOPK_CASES)
@pytest.mark.parametrize("tail", list(TAILS))
def test_reference_and_its_gradient_are_the_definition(divergence, beta, tail):
    student, teacher, _ = draw(1, 4, 9)
    for k, temperature in ((1, 1.0), (4, 2.5), (9, 2.0)):
        top = known(teacher, k, tail)
        if k == 4:
            top.ids[1, 2:] = -1
        codes = temperature, DIVERGENCES[divergence], beta or 0.0
        leaf = student[0].clone().requires_grad_()
        rows = naive(leaf, top, temperature, divergence, beta)
        (expected,) = torch.autograd.grad(rows.sum(), leaf)
        given = student, top.ids, top.logprobs, TAILS[tail]
        torch.testing.assert_close(
            reference_topk.topk_divergence(*given, *codes)[0], rows.detach(), rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(reference_topk.topk_slope(*given, *codes)[0], expected, rtol=1e-9, atol=1e-9)


def check(student, top, label, temperature, divergence, beta, row_weight=None):
    """Both ops, forward and backward: at most twice torch's own error."""
    codes = temperature, DIVERGENCES[divergence], DEFAULT_BETA.get(divergence, 0.0) if beta is None else beta
    teacher = top.ids, top.logprobs, TAILS[top.tail]
    wide = top.ids, top.logprobs.double(), TAILS[top.tail]
    options = dict(temperature=temperature, divergence=divergence, beta=beta)
    upstream = torch.randn(3, *student.shape[:2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    upstream[:, :, 2::5] = 0
    leaf = student.clone().requires_grad_()
    terms = distill_terms(leaf, top, label, **options)
    terms.backward(upstream.to(terms.dtype))
    same = reference_topk.distill_topk_terms(student, *teacher, label, *codes)
    truth = reference_topk.distill_topk_terms(student.double(), *wide, label, *codes)
    assert_no_worse(terms.detach(), same, truth)
    same = reference_topk.topk_gradient(upstream, student, *teacher, label, *codes)
    truth = reference_topk.topk_gradient(upstream, student.double(), *wide, label, *codes)
    assert_no_worse(leaf.grad, same, truth)
    w = torch.tensor([0.7, 1.3, 0.5], dtype=terms.dtype)
    got = OPS.distill_topk_loss(list(student), *teacher, label, w, row_weight, None, *codes, True)
    same = reference_topk.distill_topk_loss(student, *teacher, label, w, row_weight, None, *codes)
    r = None if row_weight is None else row_weight.double()
    truth = reference_topk.distill_topk_loss(student.double(), *wide, label, w.double(), r, None, *codes)
    for ours, torchs, exact in zip(got, same, truth, strict=True):
        assert_no_worse(ours, torchs, exact.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tail", list(TAILS))
def test_no_worse_than_torch(dtype, tail):
    # one class, some, all; a chunk of the kernels, and more than one with a ragged vector
    sizes = [(1, 5, 1, 1), (3, 5, 9, 8), (2, 4, 64, 64), (1, 3, 1024, 8), (2, 3, 2051, 64), (5, 3, 70, 8)]
    for (K, N, C, k), (divergence, beta) in itertools.product(sizes, TOPK_CASES):
        student, teacher, label = draw(K, N, C, dtype, seed=C)
        top = known(teacher, k, tail)
        for temperature in (1.0, 2.0, 2.5) if divergence in ("kl", "js") else (2.0,):
            check(student, top, label, temperature, divergence, beta)


@pytest.mark.parametrize("tail", list(TAILS))
@pytest.mark.parametrize("mass", [1.0, 1 - 1e-6, 0.5, 1e-6])
def test_any_mass_of_the_tail(mass, tail):
    """Of the teacher; and students from one that is as unsure to one whose tail underflows in float32."""
    student, teacher, label = draw(2, 6, 300, torch.float32)
    ids = teacher.topk(8).indices
    logprobs = torch.full(ids.shape, math.log(mass / 8)).clamp_max(0)
    for scale in (0.0, 1.0, 10.0, 100.0):
        sure = scale * student.clone()
        sure.scatter_add_(-1, ids.expand(2, 6, 8), torch.full((2, 6, 8), scale))
        for divergence in ("kl", "reverse_kl", "js", "cross_entropy", "tv"):
            check(sure, TopK(ids, logprobs, tail), label, 1.0, divergence, None)


@pytest.mark.parametrize("tail", list(TAILS))
def test_minus_infinity_ties_and_rows_of_fewer_classes(tail):
    student, teacher, label = draw(2, 6, 40, torch.float32)
    student[:, 1, 30:] = -torch.inf
    student[:, 2] = 0.5
    teacher[:, 20:] = -torch.inf  # its classes are known to have no mass
    top = known(teacher, 20, tail)
    top.ids[3, 5:], top.logprobs[3, 5:] = -1, torch.nan
    top.ids[4] = -1
    label[1] = 0
    for divergence, row_weight in itertools.product(
        ("kl", "js", "tv", "cross_entropy"), (None, torch.arange(6) % 3 / 2, (torch.arange(12) % 5).view(2, 6).float())
    ):
        check(student, top, label, 2.0, divergence, None, row_weight)
    assert (distill_terms(student, top)[1, :, 4] == 0).all()


def test_all_classes_are_the_dense_loss():
    student, teacher, label = draw(3, 5, 60)
    for divergence, beta in TOPK_CASES:
        options = dict(divergence=divergence, beta=beta)
        dense = distill_terms(student, teacher, label, **options)
        for tail in TAILS:
            torch.testing.assert_close(distill_terms(student, known(teacher, 60, tail), label, **options), dense)


def test_a_masked_row_is_masked_whatever_it_holds():
    student, teacher, label = draw(2, 4, 30, torch.float32)
    top, label[1] = known(teacher, 5), -100
    results = []
    for _ in range(2):
        leaf = student.clone().requires_grad_()
        loss, means = distill_loss(leaf, top, label, row_weight=torch.tensor([True, False, True, True]))
        loss.backward()
        results.append((loss.detach(), means, leaf.grad))
        student[:, 1], top.logprobs[1] = torch.nan, torch.nan
    for holding_nan, before in zip(results[1], results[0], strict=True):
        assert torch.equal(holding_nan, before)
    assert (leaf.grad[:, 1] == 0).all()


def test_any_leading_shape_a_list_and_one_student_are_the_same():
    student, teacher, label = draw(3, 12, 50, torch.float32)
    top = known(teacher, 6)
    leaf = student.clone().requires_grad_()
    loss, means = distill_loss(leaf, top, label)
    loss.backward()
    shaped = TopK(top.ids.view(3, 4, 6).int(), top.logprobs.view(3, 4, 6))
    leaves = [s.view(3, 4, 50).clone().requires_grad_() for s in student]
    again, means_again = distill_loss(leaves, shaped, label.view(3, 4))
    (2 * again).backward()
    assert torch.equal(again, loss) and torch.equal(means_again, means)
    assert all(torch.equal(one.grad.view(12, 50), 2 * g) for one, g in zip(leaves, leaf.grad, strict=True))
    alone = distill_loss(student[1], top, label)
    assert torch.equal(alone[1][:2, 0], means[:2, 1])
    _, means = distill_loss(student, top, label, student_entropy=True)
    assert means.shape == (4, 3) and (means[3] > 0).all()


def test_no_rows_and_no_gradient():
    top = TopK(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4))
    student = torch.randn(2, 0, 9, requires_grad=True)
    loss, means = distill_loss(student, top)
    loss.backward()
    assert loss == 0 and means.shape == (3, 2) and student.grad.shape == student.shape
    assert not distill_loss(student.detach(), top)[0].requires_grad


@pytest.mark.parametrize("tail", list(TAILS))
def test_opcheck_and_gradcheck(tail):
    student, teacher, label = draw(2, 4, 9)
    top = known(teacher, 3)
    given, codes = (*top[:2], TAILS[tail], label), (2.0, DIVERGENCES["js"], 0.3)
    w = torch.ones(3, dtype=torch.float64)
    for s in (list(student), [one.clone().requires_grad_() for one in student]):
        opcheck(OPS.distill_topk_terms, (s, *given, *codes))
        opcheck(OPS.distill_topk_loss, (s, *given, w, None, None, *codes, s[0].requires_grad))
    upstream = torch.randn(3, 2, 4, dtype=torch.float64)
    opcheck(OPS.distill_topk_terms_backward, (upstream, list(student), *given, *codes))
    leaf = student.clone().requires_grad_()
    top, options = top._replace(tail=tail), dict(temperature=2.0, divergence="js", beta=0.3)
    # peers are constants
    assert torch.autograd.gradcheck(lambda s: distill_terms(s, top, label, **options)[:2], leaf)
    assert torch.autograd.gradcheck(lambda s: distill_loss(s, top, label, weights=(1, 1, 0), **options)[0], leaf)
    loss, _ = distill_loss(leaf, top)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss, leaf, create_graph=True)


def test_compiles_without_a_graph_break():
    student, teacher, label = draw(2, 6, 20, torch.float32)
    top = known(teacher, 4)

    def step(student, top):
        loss, means = distill_loss(student * 1.5, top, label)
        return loss * 3 + distill_terms(student, top, label).sum(), means

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = student.clone().requires_grad_()
        loss, means = run(leaf, top)
        loss.backward()
        results.append((loss.detach(), means, leaf.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("by_reference", [False, True])
@pytest.mark.parametrize(
    "ids,logprobs,message",
    [
        ([[0, 1], [2, 9]], None, r"ids\[1\]: expected -1"),
        ([[0, 1], [-2, 1]], None, r"ids\[1\]: expected -1"),
        ([[0, 1], [3, 3]], None, r"ids\[1\]: expected each class once"),
        (None, [[-1.0, -2.0], [0.1, -9.0]], r"logprobs\[1\]: expected log-probabilities, at most 0"),
        (None, [[-1.0, -2.0], [-0.1, -0.2]], r"logprobs\[1\]: expected .* their mass is 1.72"),
    ],
)
def test_what_is_no_distribution_raises(ids, logprobs, message, by_reference):
    ids = torch.tensor(ids if ids is not None else [[0, 1], [1, 2]])
    logprobs = torch.tensor(logprobs if logprobs is not None else [[-1.0, -2.0], [-2.0, -3.0]])
    with pytest.raises(ValueError, match=message):
        if by_reference:
            reference_topk.check_topk(ids, logprobs, 9, 1)
        else:
            distill_loss(torch.randn(2, 9), TopK(ids, logprobs))
    rounded = torch.full((2, 2), math.log(0.5)).half() + 0.002  # within what float16 rounds
    assert distill_loss(torch.randn(2, 9), TopK(torch.tensor([[0, 1], [2, 3]]), rounded))[0].isfinite()


@pytest.mark.parametrize(
    "change,error,message",
    [
        (dict(tail="keep"), ValueError, "tail: expected True, False or 'renormalise'"),
        (dict(tail=1.0), ValueError, "tail: expected"),
        (dict(ids=torch.zeros(4, 2)), TypeError, "ids: expected a tensor of torch.int64"),
        (dict(logprobs=torch.zeros(4, 3)), ValueError, r"logprobs: expected shape \(4, 2\)"),
        (dict(ids=torch.zeros(3, 2, dtype=torch.int64)), ValueError, "ids: expected shape"),
        (dict(logprobs=torch.zeros(4, 2, dtype=torch.int64)), TypeError, "logprobs: expected a tensor of"),
        (dict(logprobs=torch.zeros(4, 2, requires_grad=True)), ValueError, "pass logprobs.detach()"),
        (
            dict(ids=torch.zeros(4, 9, dtype=torch.int64), logprobs=torch.zeros(4, 9)),
            ValueError,
            "ids: expected from 1 to C = 5 classes in a row, got 9",
        ),
    ],
)
def test_other_arguments_are_refused(change, error, message):
    top = TopK(torch.tensor([[0, 1]] * 4), torch.tensor([[-1.0, -2.0]] * 4))._replace(**change)
    with pytest.raises(error, match=message):
        distill_loss(torch.randn(2, 4, 5), top)


def test_mse_has_no_top_k():
    with pytest.raises(ValueError, match="divergence: mse compares logits"):
        distill_loss(torch.randn(1, 5), TopK(torch.tensor([[1]]), torch.tensor([[-1.0]])), divergence="mse")
    with pytest.raises(ValueError, match="mse compares logits"):
        OPS.distill_topk_terms([torch.randn(1, 5)], torch.tensor([[1]]), torch.tensor([[-1.0]]), 1, None, 1.0, 3, 0.0)


def test_reference_marks_a_bad_row_where_it_may_not_look():
    ids, logprobs = torch.tensor([[0, 1], [1, 1], [7, 2], [2, 3]]), torch.full((4, 2), -1.0)
    logprobs[3, 0] = 0.5
    faults = reference_topk._faults(ids, logprobs, 5, 1)
    assert torch.stack(faults).any(0).tolist() == [False, True, True, True]
    assert reference.Divergence.MSE == 3
