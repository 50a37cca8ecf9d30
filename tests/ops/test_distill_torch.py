"""The ops of the loss as parts of torch: schemas, compilation, graphs, autocast, and arguments that are refused."""

import itertools

import pytest
import torch
from support.distill import codes_of, draw, loss_and_gradient, options_of
from support.grids import sample
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from nanonet import cohort_linear, distill_loss, distill_terms
from nanonet.reference import DIVERGENCES

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@pytest.mark.parametrize("divergence,dtype", sample(itertools.product(DIVERGENCES, DTYPES), 7))
def test_opcheck(divergence, dtype):
    codes = codes_of(divergence, None, 2.0)
    ops = torch.ops.nanonet
    student, teacher, label = draw(2, 4, 6, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    w = torch.ones(3, dtype=wide)
    for s in (student, student.clone().requires_grad_()):
        opcheck(ops.distill_terms, (s, teacher, label, *codes))
        opcheck(ops.distill_loss, (s, teacher, label, w, None, None, *codes, s.requires_grad))
    opcheck(ops.distill_loss, (student, None, None, w, w.new_ones(4), w.new_ones(2), *codes, False))
    terms, stats = ops.distill_terms(student, teacher, label, *codes)
    opcheck(ops.distill_terms_backward, (torch.ones_like(terms), student, teacher, label, stats, *codes))
    into = (torch.empty_like(student), student, teacher, label, w, w.new_ones(4), None, *codes)
    opcheck(ops.distill_loss_into_, into)
    opcheck(ops.distill_scale_, (student.clone(), torch.tensor(2.0, dtype=wide)))


# a divergence is a number to the compiler
@pytest.mark.parametrize(
    "backend,divergence", [("inductor", "kl"), *sample(itertools.product(["aot_eager"], DIVERGENCES), 4)]
)
def test_compiles_without_a_graph_break(backend, divergence):
    torch._dynamo.reset()  # else the ninth meets the limit of recompilations
    student, teacher, label = draw(2, 6, 9, torch.float32)
    options = options_of(divergence, None, 2.0)

    def step(student, weights):
        loss, means = distill_loss(student * 1.5, teacher, label, weights=weights, **options)
        return loss * 3 + distill_terms(student, teacher, label, **options).sum(), means

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend=backend)):
        s = student.clone().requires_grad_()
        loss, means = run(s, torch.tensor([1.0, 0.5, 0.25]))
        loss.backward()
        results.append((loss.detach(), means, s.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_backward_of_a_kept_graph_and_of_a_freed_one():
    student, teacher, label = draw(2, 4, 6, torch.float32)
    student.requires_grad_()
    loss, _ = distill_loss(student, teacher, label)
    once = torch.autograd.grad(loss, student, retain_graph=True)[0]
    kept = once.clone()
    thrice = torch.autograd.grad(loss, student, grad_outputs=torch.tensor(3.0), retain_graph=True)[0]
    torch.testing.assert_close(thrice, 3 * kept)
    last = torch.autograd.grad(loss, student, grad_outputs=torch.tensor(2.0))[0]
    torch.testing.assert_close(last, 2 * kept)
    assert torch.equal(once, kept)  # an earlier gradient is not written over
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, student)


def test_default_weights_of_a_fake_tensor_are_not_kept_for_others():
    with FakeTensorMode():
        distill_loss(torch.randn(2, 3, 4), weights=(1.0, 0.5, 0.125))
    loss, _ = distill_loss(torch.randn(2, 3, 4), weights=(1.0, 0.5, 0.125))
    assert loss.isfinite()


def test_second_derivatives_raise():
    student, teacher, label = draw(2, 4, 6, torch.float32)
    student.requires_grad_()
    for value in (distill_loss(student, teacher, label)[0], distill_terms(student, teacher, label).sum()):
        with pytest.raises(RuntimeError, match="second derivative"):
            torch.autograd.grad(value, student, create_graph=True)


def test_a_float16_gradient_does_not_underflow_before_its_loss_scale():
    g = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 16, 3000, generator=g), 2 * torch.randn(16, 3000, generator=g)
    gradients = []
    for dtype in (torch.float16, torch.float64):
        leaf = student.half().to(dtype).requires_grad_()
        (65536 * distill_loss(leaf, teacher.half().to(dtype), weights=(0.0, 1.0, 0.0))[0]).backward()
        assert leaf.grad.dtype == dtype
        gradients.append(leaf.grad.double())
    got, exact = gradients
    assert got.all() and ((got - exact) / exact).abs().median() < 5e-4


def test_a_batch_of_upstream_gradients():
    student, teacher, label = draw(2, 4, 6, torch.float32)
    student.requires_grad_()
    factors = torch.tensor([1.0, -2.0, 0.5])
    loss, _ = distill_loss(student, teacher, label)
    once = torch.autograd.grad(loss, student, retain_graph=True)[0]
    together = torch.autograd.grad(loss, student, grad_outputs=factors, is_grads_batched=True)[0]
    torch.testing.assert_close(together, factors[:, None, None, None] * once)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(use_reentrant):
    g = torch.Generator().manual_seed(0)
    shapes = (2, 5, 7), (9, 7), (2, 3, 7), (2, 9, 3)  # x, weight, lora_a, lora_b
    drawn = [torch.randn(shape, generator=g) for shape in shapes]
    teacher, label, seed = torch.randn(5, 9, generator=g), torch.tensor([0, 3, -100, 8, 2]), torch.tensor(7)

    def step(x, weight, a, b):
        logits = cohort_linear(x, weight, None, a, b, dropout=0.5, seed=seed)
        return distill_loss(logits, teacher, label)[0]

    results = []
    for run in (step, lambda *leaves: checkpoint(step, *leaves, use_reentrant=use_reentrant)):
        leaves = [t.clone().requires_grad_() for t in drawn]
        loss = run(*leaves)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again) and plain.count_nonzero()


def test_autocast_leaves_the_loss_alone():
    student, teacher, label = draw(2, 4, 6, torch.float32)
    plain = loss_and_gradient((student, teacher, label), (1.0, 1.0, 1.0))
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss_and_gradient((student, teacher, label), (1.0, 1.0, 1.0))
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)


def test_inputs_are_not_written_and_buffers_are_fresh():
    student, teacher, label = draw(2, 4, 6, torch.float32)
    before = student.clone(), teacher.clone()
    first = loss_and_gradient((student, teacher, label), (1.0, 1.0, 1.0))[2]
    kept = first.clone()
    loss_and_gradient((student * 2, teacher, label), (1.0, 1.0, 1.0))
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1]) and torch.equal(first, kept)


def test_terms_without_grad_and_no_grad_loss():
    student, teacher, label = draw(2, 4, 6, torch.float32)
    loss, _ = distill_loss(student.requires_grad_(), teacher, label)
    with torch.no_grad():
        quiet, _ = distill_loss(student, teacher, label)
    assert torch.equal(loss.detach(), quiet) and not quiet.requires_grad
    # a term that nobody uses leaves a gradient of 0, not an error
    terms = distill_terms(student, teacher, label)
    assert terms.requires_grad and torch.autograd.grad(terms[0].sum() * 0, student)[0].count_nonzero() == 0


S, T, Y = torch.zeros(2, 3, 4), torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
BAD = [
    (dict(student=[[1.0]]), TypeError, r"student\[0\]: expected a"),
    (dict(student=S.long()), TypeError, "student"),
    (dict(student=T[0]), ValueError, r"\(K,N,C\)"),
    (dict(student=torch.zeros(0, 3, 4)), ValueError, "K >= 1"),
    (dict(teacher=torch.zeros(3, 5)), ValueError, r"teacher: expected shape \(3, 4\)"),
    (dict(teacher=T.long()), TypeError, "teacher"),
    (dict(teacher=T.clone().requires_grad_()), ValueError, r"teacher.detach\(\)"),
    (dict(label=Y.float()), TypeError, "label"),
    (dict(label=Y[:2]), ValueError, "label: expected shape"),
    (dict(label=Y + 4), ValueError, r"label\[0\] is 4.*-100"),
    (dict(label=Y - 1), ValueError, r"label\[0\] is -1"),
    (dict(weights=(1.0, 2.0)), ValueError, "weights"),
    (dict(weights="abc"), TypeError, "weights"),
    (dict(weights=torch.ones(3, requires_grad=True)), ValueError, "weights"),
    (dict(row_weight=torch.ones(2)), ValueError, r"row_weight: expected shape \(3,\) or \(2, 3\)"),
    (dict(denominators=torch.ones(3)), ValueError, "denominators"),
    (dict(temperature=0.0), ValueError, "temperature"),
    (dict(temperature=float("nan")), ValueError, "temperature"),
    (dict(divergence="hellinger"), ValueError, "kl, reverse_kl, js, mse, symmetric_kl.*cross_entropy"),
    (dict(beta=0.5), ValueError, "beta: kl has none"),
    (dict(divergence="tv", beta=0.5), ValueError, "beta: tv has none"),
    (dict(divergence="js", beta=1.5), ValueError, "beta: expected a number from 0 to 1 for js, got 1.5"),
    (dict(divergence="js", beta=float("nan")), ValueError, "beta: expected"),
    (dict(divergence="skew_kl", beta=1), ValueError, "beta: expected"),
    (dict(divergence="mse", temperature=2.0), ValueError, "raw logits"),
    (dict(teacher=torch.zeros(3, 4, device="meta")), ValueError, "teacher: expected on cpu"),
]


@pytest.mark.parametrize("change,error,message", BAD)
def test_bad_arguments_are_named(change, error, message):
    arguments = dict(student=S, teacher=T, label=Y) | change
    student, teacher, label = (arguments.pop(name) for name in ("student", "teacher", "label"))
    with pytest.raises(error, match=message):
        distill_loss(student, teacher, label, **arguments)
