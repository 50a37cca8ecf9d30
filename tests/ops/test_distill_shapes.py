"""Every shape and layout that the loss takes gives what (K,N,C), (N,C) and (N,) give, to the last bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.distill import CASES, codes_of, draw, options_of
from torch.library import opcheck

from nanonet import distill_loss, distill_terms

CPU_KERNELS = torch._C._dispatch_has_kernel_for_dispatch_key("nanonet::distill_terms", "CPU")


def run(student, teacher, label, upstream=None, **options):
    """Terms, loss, means and gradients of both entry points; student a tensor or a list."""
    leaves = [s.detach().requires_grad_() for s in (student if isinstance(student, list) else [student])]
    given = leaves if isinstance(student, list) else leaves[0]
    row_weight = options.pop("row_weight", None)
    terms = distill_terms(given, teacher, label, **options)
    g = torch.Generator().manual_seed(3)
    upstream = torch.randn(terms.numel(), generator=g).to(terms).view_as(terms) if upstream is None else upstream
    first = torch.autograd.grad(terms, leaves, upstream, allow_unused=True)
    loss, means = distill_loss(given, teacher, label, weights=(0.5, 1.5, 0.7), row_weight=row_weight, **options)
    second = torch.autograd.grad(loss, leaves)
    return terms.detach(), loss.detach(), means, first, second


def assert_same(got, wanted, K, shape):
    """Of another leading shape, and of students in one tensor or apart."""
    C = wanted[3][0].shape[-1]
    for ours, theirs in zip(got[:3], wanted[:3], strict=True):
        assert torch.equal(ours.reshape(theirs.shape), theirs)
    for ours, theirs in zip(got[3:], wanted[3:], strict=True):
        assert len(ours) in (1, K) and all(g.shape[-1] == C for g in ours)
        together = torch.cat([g.reshape(-1, theirs[0].shape[1], C) for g in ours])
        assert torch.equal(together, theirs[0])
    assert got[0].shape == (3, K, *shape)


def layouts(draw_, K, leading, C, dtype, seed):
    """student (K,*leading,C), teacher and label as slices of larger tensors, and contiguous flat copies of them."""
    padded = tuple(n + 1 for n in leading)
    student, teacher, label = draw_(K, torch.Size(padded).numel(), C, dtype, seed)
    student, teacher, label = student.view(K, *padded, C), teacher.view(*padded, C), label.view(padded)
    for dim, n in enumerate(leading):
        student, teacher, label = student.narrow(dim + 1, 0, n), teacher.narrow(dim, 0, n), label.narrow(dim, 0, n)
    N = torch.Size(leading).numel()
    return (student, teacher, label), (student.reshape(K, N, C), teacher.reshape(N, C), label.reshape(N))


@settings(max_examples=60, deadline=None)
@given(
    K=st.integers(1, 3),
    leading=st.lists(st.integers(1, 3), max_size=4),
    C=st.sampled_from([1, 4, 50, 1030]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    case=st.sampled_from(CASES),
    parts=st.sampled_from([(True, True), (True, False), (False, True)]),
    int32=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_leading_shape_and_strides(K, leading, C, dtype, case, parts, int32, seed):
    inputs, flat = layouts(draw, K, leading, C, dtype, seed)
    options = options_of(*case, 2.0)
    (student, teacher, label), (s, t, y) = inputs, flat
    teacher, t = (teacher, t) if parts[0] else (None, None)
    label, y = (label.int() if int32 else label, y) if parts[1] else (None, None)
    wanted = run(s, t, y, **options)
    assert_same(run(student, teacher, label, **options), wanted, K, leading)
    assert_same(run([student[k] for k in range(K)], teacher, label, **options), wanted, K, leading)
    if K == 1:
        assert_same(run(student[0], teacher, label, **options), wanted, K, leading)


def test_neither_teacher_nor_labels_leave_the_first_dimension_to_the_students():
    student = draw(3, 6, 5, torch.float32)[0]
    wanted = run(student, None, None)
    assert_same(run(student.view(3, 2, 3, 5), None, None), wanted, 3, (2, 3))
    assert_same(run(list(student.view(3, 2, 3, 5)), None, None), wanted, 3, (2, 3))


@pytest.mark.parametrize("each", [False, True])
def test_row_weights_of_every_kind_and_shape(each):
    student, teacher, label = draw(2, 6, 5, torch.float32)
    weight = torch.tensor([[1, 0, 2, 1, 1, 3], [1, 1, 0, 2, 1, 1]])[slice(None) if each else 0]
    flat = run(student, teacher, label, row_weight=weight.float())
    shape = (2, 3, 2) if each else (3, 2)
    student, teacher, label = student.view(2, 3, 2, 5), teacher.view(3, 2, 5), label.view(3, 2)
    for kind in (torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8):
        assert_same(run(student, teacher, label, row_weight=weight.to(kind).view(shape)), flat, 2, (3, 2))
        assert_same(run(list(student), teacher, label, row_weight=weight.to(kind).view(shape)), flat, 2, (3, 2))
    mask = (weight > 0).view(shape)
    as_numbers, as_bools = (run(student, teacher, label, row_weight=r) for r in (mask.float(), mask))
    assert torch.equal(as_numbers[1], as_bools[1]) and torch.equal(as_numbers[4][0], as_bools[4][0])


def test_every_student_gets_a_gradient_of_its_own():
    _, teacher, label = draw(3, 4, 6, torch.float32)
    models = [torch.nn.Linear(5, 6) for _ in range(3)]
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    for loss_of in (
        lambda logits: distill_loss(logits, teacher, label)[0],
        lambda logits: distill_terms(logits, teacher, label).sum(),
    ):
        grads = []
        for logits in ([model(x) for model in models], torch.stack([model(x) for model in models])):
            for model in models:
                model.zero_grad()
            loss_of(logits).backward()
            grads.append([p.grad.clone() for model in models for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
        # one of them frozen
        logits = [model(x) for model in models]
        logits[1] = logits[1].detach()
        loss_of(logits).backward()


@pytest.mark.skipif(not CPU_KERNELS, reason="nanonet._C was not built")
def test_a_slice_is_read_in_place():
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 9, 3000, generator=g)[:, :-1] for _ in range(2))
    label = torch.randint(0, 3000, (2, 9), generator=g)[:, 1:]
    leaf = student.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        terms = distill_terms(leaf, teacher, label, divergence="js")
        loss = distill_loss([leaf, teacher], teacher, label, divergence="js")[0]
        gradients = torch.autograd.grad(terms, leaf, torch.ones_like(terms)), torch.autograd.grad(loss, leaf)
    names = {event.name for event in profile.events()}
    assert not names & {"aten::clone", "aten::contiguous", "aten::stack", "aten::cat", "aten::reshape"}, names
    assert all(g.shape == leaf.shape for (g,) in gradients)


def test_a_label_is_named_by_its_place():
    student, teacher, label = draw(1, 6, 5, torch.float32)
    label = label.view(2, 3)
    label[1, 2] = 5
    with pytest.raises(ValueError, match=r"label\[(1, 2|5)\] is 5: expected -100 \(unlabelled\) or 0 <= label < 5"):
        distill_terms(student.view(2, 3, 5), teacher.view(2, 3, 5), label)


def test_the_mean_entropy_of_the_students():
    student, teacher, label = draw(2, 6, 5, torch.float64)
    r = torch.tensor([1.0, 0, 2, 1, 1, 3], dtype=torch.float64)
    q = torch.softmax(student / 2, -1)
    wanted = (-(q * q.log()).sum(-1) * r).sum(-1) / r.sum()
    plain = distill_loss(student, teacher, label, row_weight=r, temperature=2.0)[1]
    for students in (student, list(student)):
        _, means = distill_loss(students, teacher, label, row_weight=r, temperature=2.0, student_entropy=True)
        torch.testing.assert_close(means[3], wanted)
        assert torch.equal(means[:3], plain) and means.shape == (4, 2) and not means.requires_grad


def test_torch_func_grad():
    student, teacher, label = draw(2, 3, 4, torch.float32)
    for loss in (
        lambda s: distill_loss(s, teacher, label)[0].square(),
        lambda s: distill_terms(s, teacher, label, divergence="js").square().sum(),
    ):
        leaf = student.clone().requires_grad_()
        torch.testing.assert_close(torch.func.grad(loss)(student), torch.autograd.grad(loss(leaf), leaf)[0])
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.func.grad(lambda s, loss=loss: torch.func.grad(loss)(s).square().sum())(student)


def test_the_rest_of_torch_func_is_refused_in_one_line():
    student, teacher, _ = draw(2, 3, 4, torch.float32)
    for op in (distill_loss, distill_terms):
        with pytest.raises(RuntimeError, match="rows as leading dimensions"):
            torch.func.vmap(lambda s, op=op: op(s, teacher)[0])(student)
    with pytest.raises(RuntimeError, match="a list of students"):
        torch.func.grad(lambda s: distill_loss([s[0], s[1]], teacher)[0])(student)


@pytest.mark.parametrize("case", [("kl", None), ("js", 0.25)])
def test_opcheck_of_separate_students_and_of_other_shapes(case):
    student, teacher, label = draw(2, 6, 5, torch.float32)
    codes, ops = codes_of(*case, 2.0), torch.ops.nanonet
    teacher, label, w = teacher.view(2, 3, 5), label.view(2, 3), torch.ones(3)
    each = [s.view(2, 3, 5).clone().requires_grad_() for s in student]
    opcheck(ops.distill_terms_each, (each, teacher, label, *codes))
    opcheck(ops.distill_loss_each, (each, teacher, label, w, None, None, *codes, True))
    for s in (student.view(2, 2, 3, 5), student[0].view(2, 3, 5)):
        opcheck(ops.distill_terms, (s.clone().requires_grad_(), teacher, label, *codes))
        opcheck(ops.distill_loss, (s.clone().requires_grad_(), teacher, label, w, None, None, *codes, True))
        terms, stats = ops.distill_terms(s, teacher, label, *codes)
        opcheck(ops.distill_terms_backward, (torch.ones_like(terms), s, teacher, label, stats, *codes))


def test_compiles_without_a_graph_break():
    student, teacher, label = draw(2, 6, 5, torch.float32)
    teacher, label = teacher.view(2, 3, 5), label.view(2, 3)

    def step(one, two):
        apart = distill_loss([one * 2, two], teacher, label, divergence="js", beta=0.25)[0]
        return apart + distill_terms(one, teacher, label, divergence="tv").sum()

    results = []
    for run_ in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [s.view(2, 3, 5).clone().requires_grad_() for s in student]
        loss = run_(*leaves)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


S, T, Y = torch.zeros(2, 3, 4), torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
BAD = [
    ((S, torch.zeros(3, 5), None), ValueError, r"teacher: expected shape \(3, 4\).*slice it, teacher\[..., :4\]"),
    (
        (torch.zeros(5, 2, 3, 4), T, None),
        ValueError,
        r"student: expected \(K,N,C\), or teacher's leading shape of 1 dim",
    ),
    ((torch.zeros(3, 4), None, None), ValueError, r"student: expected \(K,N,C\).*without a teacher and labels"),
    (([], T, None), TypeError, "student: expected a tensor, or a list of one tensor or more"),
    (([T, T.double()], T, None), ValueError, r"student\[1\]: expected \(3, 4\), torch.float32 on cpu"),
    (([T, T[:2]], T, None), ValueError, r"student\[1\]: expected \(3, 4\)"),
    (([T, T.long()], T, None), TypeError, r"student\[1\]: expected a floating tensor"),
    ((S, T, Y.short()), TypeError, "label: expected a tensor of torch.int64, torch.int32"),
]


@pytest.mark.parametrize("arguments,error,message", BAD)
def test_bad_shapes_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        distill_loss(*arguments)
    with pytest.raises(error, match=message):
        distill_terms(*arguments)
