"""distill_linear_loss: the loss of logits that never exist whole, against distill_loss of float64 logits."""

import itertools

import pytest
import torch
from support.distill import assert_no_worse
from support.linear_processes import gradients_of_half
from support.process_group import results
from torch.library import opcheck

from nanonet import TopK, distill_linear_loss, distill_loss
from nanonet.ops import linear_products

K, N, D, E, V = 3, 10, 6, 5, 23


def draw(dtype=torch.float32, K=K, N=N, shared=False, seed=0):
    """hidden (K,N,D), weight, bias, teacher_hidden (N,E), teacher_weight, label."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(K, N, D), (V, D) if shared else (K, V, D), (V,) if shared else (K, V), (N, E), (V, E)]
    tensors = [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]
    label = torch.randint(0, V, (N,), generator=g)
    label[::3] = -100
    return *tensors, label


def whole(
    hidden, weight, teacher, teacher_weight, label, *, bias=None, transform=None, teacher_transform=None, **options
):
    """The definition: all logits at once, in the dtype of the tensors."""
    weights = [weight] * len(hidden) if weight.dim() == 2 else weight
    logits = [h @ w.T for h, w in zip(hidden, weights, strict=True)]
    if bias is not None:
        logits = [x + b for x, b in zip(logits, [bias] * len(hidden) if bias.dim() == 1 else bias, strict=True)]
    student = torch.stack(logits)
    teacher = teacher if teacher_weight is None else teacher @ teacher_weight.T
    if teacher_transform is not None:
        teacher = teacher_transform(teacher)
    return distill_loss(student if transform is None else transform(student), teacher, label, **options)


def run(loss_of, tensors, others, **options):
    """loss, means and the gradients of hidden, weight and bias."""
    hidden, weight, bias = leaves = [t.clone().requires_grad_() for t in tensors]
    loss, means = loss_of(hidden, weight, *others, bias=bias, **options)
    (2 * loss).backward()
    return loss.detach(), means, *(leaf.grad for leaf in leaves)


def cut(logits):
    return 4 * torch.tanh(logits / 4)[..., :19]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("known", ["hidden", "logits", "topk"])
def test_no_worse_than_torch(dtype, shared, known):
    hidden, weight, bias, t, tw, label = draw(dtype, shared=shared)
    row_weight = torch.arange(N) % 4 / 2
    for transform, chunk in itertools.product((None, cut), (1, 4, 100)):
        cut_t = transform if known == "hidden" else None
        classes = V if transform is None else 19
        if known == "hidden":
            others = [t, tw]
        else:
            logits = (t @ tw.T)[:, :classes]
            top = logits.double().log_softmax(-1).topk(5)
            others = [logits if known == "logits" else TopK(top.indices, top.values.float()), None]
        given = dict(transform=transform, teacher_transform=cut_t, temperature=2.0, row_weight=row_weight)
        label_cut = torch.where(label < classes, label, -100)
        tensors = hidden, weight, bias
        got = run(distill_linear_loss, tensors, (*others, label_cut), chunk=chunk, **given)
        same = run(whole, tensors, (*others, label_cut), **given)
        wide = [x.double() if isinstance(x, torch.Tensor) else x for x in others]
        given["row_weight"] = row_weight.double()
        truth = run(whole, [x.double() for x in tensors], (*wide, label_cut), **given)
        for ours, torchs, exact in zip(got, same, truth, strict=True):
            assert_no_worse(ours, torchs, exact, 1e-5 if dtype == torch.float32 else None)
        assert got[2].dtype == got[3].dtype == got[4].dtype == dtype


def test_bfloat16_logits_are_not_rounded():
    hidden, weight, bias, t, tw, label = draw(torch.bfloat16)
    ours, _ = distill_linear_loss(hidden, weight, t, tw, label, bias=bias)
    exact, _ = whole(*(x.double() for x in (hidden, weight, t, tw)), label, bias=bias.double())
    assert abs(ours.item() - exact.item()) < 1e-6 * exact.item()


def test_students_of_different_widths_and_any_leading_shape():
    g = torch.Generator().manual_seed(1)
    hidden = [torch.randn(2, 5, width, generator=g, requires_grad=True) for width in (4, 9)]
    weight = [torch.randn(V, width, generator=g, requires_grad=True) for width in (4, 9)]
    logits, label = torch.randn(2, 5, V, generator=g), torch.randint(0, V, (2, 5), generator=g)
    loss, means = distill_linear_loss(hidden, weight, logits, None, label, chunk=3)
    expected, expected_means = distill_loss([h @ w.T for h, w in zip(hidden, weight, strict=True)], logits, label)
    torch.testing.assert_close((loss, means), (expected, expected_means))
    got = torch.autograd.grad(loss, [*hidden, *weight])
    for ours, exact in zip(got, torch.autograd.grad(expected, [*hidden, *weight]), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)
    one = distill_linear_loss(hidden[0], weight[0], logits, None, label)[1]
    torch.testing.assert_close(one[:2, 0], means[:2, 0])


def test_a_frozen_weight_gets_no_gradient_and_no_product(monkeypatch):
    hidden, weight, bias, t, tw, label = draw()
    called = []
    before = linear_products._add_dweight
    monkeypatch.setattr(linear_products, "_add_dweight", lambda *given: (called.append(1), before(*given)))
    leaf = hidden.clone().requires_grad_()
    loss, _ = distill_linear_loss(leaf, weight, t, tw, label)
    loss.backward()
    assert not called and leaf.grad.abs().sum() > 0
    frozen = hidden, weight.clone().requires_grad_()
    distill_linear_loss(*frozen, t, tw, label)[0].backward()
    assert called and frozen[1].grad.abs().sum() > 0
    with torch.no_grad():
        assert not distill_linear_loss(*frozen, t, tw, label)[0].requires_grad


def test_default_chunks_keep_to_the_budget(monkeypatch):
    row = 7 * 4 * V  # two copies of K = 3, and the teacher
    monkeypatch.setattr(linear_products, "BUDGET", 2 * row)
    heads = linear_products.Heads([torch.zeros(K, N, D)], [torch.zeros(K, V, D)], [])
    monkeypatch.setattr(linear_products, "MOST", 5 * row)
    assert linear_products.chunk_rows(heads, True, False) == 5
    monkeypatch.setattr(linear_products, "FEW_ROWS", 3)
    assert linear_products.chunk_rows(heads, True, False) == 3
    monkeypatch.setattr(linear_products, "MOST", 0)
    monkeypatch.setattr(linear_products, "LARGE_SUM", 2 * row)
    assert linear_products.chunk_rows(heads, True, False) == 2
    hidden, weight, bias, t, tw, label = draw(torch.bfloat16)
    # the sum of the weights' gradient is over the budget too, so it stays bfloat16
    got = run(distill_linear_loss, (hidden, weight, bias), (t, tw, label))
    exact = run(whole, [x.double() for x in (hidden, weight, bias)], (t.double(), tw.double(), label))
    assert ((got[3].double() - exact[3]).norm() / exact[3].norm()).item() < 0.02


def test_autocast_and_accumulated_micro_batches_are_one_large_batch():
    hidden, weight, bias, t, tw, label = draw()
    whole_batch = run(distill_linear_loss, (hidden, weight, bias), (t, tw, label))
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    totals = torch.tensor([(label != -100).sum().item(), N], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for rows in (slice(0, 3), slice(3, N)):
            part, w, b = leaves[0][:, rows], leaves[1], leaves[2]
            loss, _ = distill_linear_loss(part, w, t[rows], tw, label[rows], bias=b, denominators=totals)
            (2 * loss).backward()
    for ours, expected in zip(leaves, whole_batch[2:], strict=True):
        torch.testing.assert_close(ours.grad, expected, rtol=1e-5, atol=1e-6)


def test_opcheck_gradcheck_and_second_derivatives():
    hidden, weight, bias, t, tw, label = draw(torch.float64, K=2, N=4)
    w, d = torch.ones(3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    ops = torch.ops.nanonet
    for needs in ([False] * 3, [True, True, True]):
        heads = [[x.clone().requires_grad_(needs[0])] for x in (hidden, weight, bias)]
        given = (t, tw, None, None, None, 0, label, w, None, d, 2.0, 0, 0.0, 3, True, needs)
        opcheck(ops.distill_linear_loss, (*heads, *given))
    opcheck(ops.project_into_, (torch.empty(4, V), t.float(), tw.float(), None))
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]

    def loss(h, w, b):  # peers are constants
        given = dict(transform=cut, teacher_transform=cut, chunk=3, weights=(1.0, 1.0, 0.0))
        return distill_linear_loss(h, w, t, tw, label, bias=b, **given)[0]

    label[label >= 19] = -100
    assert torch.autograd.gradcheck(loss, leaves)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss(*leaves), leaves[0], create_graph=True)


def test_compiles_without_a_graph_break():
    hidden, weight, bias, t, tw, label = draw()

    def loss(h, w, t, tw, label, *, bias):
        return distill_linear_loss(h * 2, w, t, tw, label, bias=bias, chunk=4, student_entropy=True)

    eager = run(loss, (hidden, weight, bias), (t, tw, label))
    compiled = run(torch.compile(loss, fullgraph=True, backend="aot_eager"), (hidden, weight, bias), (t, tw, label))
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b)
    assert eager[1].shape == (4, K) and (eager[1][3] > 0).all()


def test_no_rows_and_no_teacher():
    hidden, weight, bias, t, tw, label = draw()
    leaf = hidden[:, :0].clone().requires_grad_()
    loss, _ = distill_linear_loss(leaf, weight, t[:0], tw, label[:0])
    loss.backward()
    assert loss == 0 and leaf.grad.shape == leaf.shape
    peers = distill_linear_loss(hidden, weight, label=label, chunk=4)
    torch.testing.assert_close(peers, distill_loss(hidden @ weight.mT, None, label))


def test_two_processes_are_one(tmp_path):
    hidden, weight, bias, t, tw, label = draw(N=8)
    first, second = results(2, tmp_path, gradients_of_half, hidden[0], weight[0], bias[0], t, tw, label)
    alone = run(distill_linear_loss, (hidden[:1], weight[:1], bias[:1]), (t, tw, label))
    for found in (first, second):
        torch.testing.assert_close(2 * found[0], alone[3][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(2 * found[1], alone[4][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change,error,message",
    [
        (dict(weight=torch.zeros(K, V, D + 1)), ValueError, r"weight: expected \(V,D\) with the D of hidden"),
        (dict(weight=torch.zeros(2, V, D)), ValueError, r"weight: expected \(V,D\), or \(K,...\) or a list of K = 3"),
        (dict(bias=torch.zeros(V + 1)), ValueError, r"bias: expected \(23,\) like weight"),
        (
            dict(hidden=torch.zeros(N + 1, D), weight=torch.zeros(V, D), bias=None),
            ValueError,
            "teacher_hidden: expected",
        ),
        (dict(hidden=torch.zeros(N)), ValueError, "hidden: expected"),
        (dict(hidden=torch.zeros(K, N, D, dtype=torch.int64)), TypeError, "hidden: expected floating tensors"),
        (dict(teacher_weight=torch.zeros(V, 2)), ValueError, r"teacher_weight: expected \(V,5\)"),
        (dict(teacher_weight=torch.zeros(V + 2, E)), ValueError, "teacher: expected the student's 23 classes, got 25"),
        (dict(teacher_weight=torch.zeros(V, E, requires_grad=True)), ValueError, "pass teacher_weight.detach()"),
        (dict(teacher_hidden=None), ValueError, "teacher_weight: it belongs to hidden states"),
        (dict(teacher_hidden="x", teacher_weight=None), TypeError, "teacher_hidden: expected a tensor, a TopK or None"),
        (dict(chunk=0), ValueError, "chunk: expected a number of rows from 1 on"),
        (dict(temperature=0.0), ValueError, "temperature: expected a number above 0"),
        (dict(label=torch.full((N,), V)), ValueError, r"rows 0 to 9: label\[0\] is 23"),
        (dict(row_weight=torch.ones(N - 1)), ValueError, "row_weight: expected shape"),
        (
            dict(teacher_hidden=None, teacher_weight=None, teacher_transform=cut),
            ValueError,
            "teacher_transform: there are",
        ),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    hidden, weight, bias, t, tw, label = draw()
    given = dict(hidden=hidden, weight=weight, teacher_hidden=t, teacher_weight=tw, label=label, bias=bias) | change
    with pytest.raises(error, match=message):
        distill_linear_loss(given.pop("hidden"), given.pop("weight"), **given)
