"""distill_terms and distill_loss: whatever backend serves them, against the definition in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanonet import distill_loss, distill_terms, reference
from nanonet.reference import DIVERGENCES

ATOL = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def naive_terms(student, teacher, label, temperature, divergence):
    """The definition once more, row by row in Python: the reference itself is judged against it."""
    K, N, C = student.shape
    terms = torch.zeros(3, K, N, dtype=torch.float64)
    for k, n in itertools.product(range(K), range(N)):
        q = torch.softmax(student[k, n] / temperature, 0)
        p = torch.softmax(teacher[n] / temperature, 0)
        if label[n] != -100:
            terms[0, k, n] = -torch.log(torch.softmax(student[k, n], 0)[label[n]])
        m = (p + q) / 2
        kl = {
            "kl": (p * (p / q).log()).sum(),
            "reverse_kl": (q * (q / p).log()).sum(),
            "js": ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2,
            "mse": ((student[k, n] - teacher[n]) ** 2).mean(),
        }
        terms[1, k, n] = temperature**2 * kl[divergence]
        for j in set(range(K)) - {k}:
            r = torch.softmax(student[j, n] / temperature, 0)
            mse = ((student[k, n] - student[j, n]) ** 2).mean()
            terms[2, k, n] += temperature**2 / (K - 1) * (mse if divergence == "mse" else (r * (r / q).log()).sum())
    return terms


def err(value, truth):
    return (value.double() - truth).abs().max().item() if value.numel() else 0.0


def gradients(student, teacher, label, upstream, **options):
    student = student.detach().requires_grad_()
    terms = distill_terms(student, teacher, label, **options)
    terms.backward(upstream.to(terms.dtype))
    return terms.detach(), student.grad


def reference_gradients(student, teacher, label, upstream, temperature, divergence):
    """By autograd through the definition, not by the closed form."""
    student = student.detach().requires_grad_()
    terms = reference.distill_terms(student, teacher, label, temperature, DIVERGENCES[divergence])
    terms.backward(upstream.to(terms.dtype))
    return terms.detach(), student.grad


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_reference_is_the_definition(divergence, temperature, draw):
    temperature = 1.0 if divergence == "mse" else temperature
    inputs = draw()
    ours = reference.distill_terms(*inputs, temperature, DIVERGENCES[divergence])
    torch.testing.assert_close(ours, naive_terms(*inputs, temperature, divergence), rtol=1e-12, atol=1e-12)


# K=1 has no peers; N=0 and 1 are edges; C=1 has no choice, 7 and 33 are ragged, 1000 spans many vectors
@pytest.mark.parametrize("K,N,C", [(1, 3, 7), (2, 1, 4), (2, 0, 4), (3, 5, 33), (4, 2, 1000), (2, 3, 1), (8, 4, 17)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_terms_and_gradients(K, N, C, dtype, divergence, draw):
    temperature = 1.0 if divergence == "mse" else 2.0
    student, teacher, label = draw(K, N, C, dtype)
    upstream = torch.randn(3, K, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    truth = reference_gradients(student.double(), teacher.double(), label, upstream, temperature, divergence)
    torchs = reference_gradients(student, teacher, label, upstream, temperature, divergence)
    ours = gradients(student, teacher, label, upstream, temperature=temperature, divergence=divergence)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert ours[0].dtype == wide and ours[1].dtype == dtype
    for value, expected, plain, atol in zip(ours, truth, torchs, (ATOL[wide], ATOL[dtype]), strict=True):
        assert err(value, expected) <= 2 * err(plain, expected) + atol


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_student", [False, True])
def test_loss_is_the_weighted_sum_of_the_terms(divergence, dtype, per_student, draw, full_loss):
    temperature = 1.0 if divergence == "mse" else 1.7
    K, N = 3, 6
    student, teacher, label = draw(K, N, 11, dtype)
    r = torch.rand(*((K, N) if per_student else (N,)), generator=torch.Generator().manual_seed(2))
    w = (0.7, 1.3, 0.4)
    s = student.double().requires_grad_()
    terms = reference.distill_terms(s, teacher.double(), label, temperature, DIVERGENCES[divergence])
    full = r.double().expand(K, N)
    means = torch.stack(
        [
            terms[0].sum(-1) / (label != -100).sum(),
            (full * terms[1]).sum(-1) / full.sum(-1),
            (full * terms[2]).sum(-1) / full.sum(-1),
        ]
    )
    truth = (torch.tensor(w, dtype=torch.float64)[:, None] * means).sum()
    truth.backward()
    loss, ours, dstudent = full_loss((student, teacher, label), w, r, temperature=temperature, divergence=divergence)
    assert loss.shape == () and not ours.requires_grad
    torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.double(), means.detach(), rtol=1e-5, atol=1e-6)
    assert err(dstudent, s.grad) <= ATOL[dtype] + 2 * err(s.grad.to(dtype), s.grad)


@settings(max_examples=60, deadline=None)
@given(
    K=st.integers(1, 5),
    N=st.integers(0, 9),
    C=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    divergence=st.sampled_from(list(DIVERGENCES)),
    temperature=st.floats(0.5, 8),
    layout=st.sampled_from(["plain", "swapped", "sliced", "expanded"]),
    parts=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]),
    seed=st.integers(0, 1000),
)
def test_any_shape_layout_and_option(K, N, C, dtype, divergence, temperature, layout, parts, seed, draw):
    temperature = 1.0 if divergence == "mse" else temperature
    student, teacher, label = draw(K, N, C, dtype, seed)
    student = {
        "plain": student,
        "swapped": student.transpose(0, 2).contiguous().transpose(0, 2),
        "sliced": torch.cat([student, student], -1)[..., ::2][..., :C],
        "expanded": student[:1].expand(K, N, C),
    }[layout]
    teacher, label = teacher if parts[0] else None, label if parts[1] else None
    upstream = torch.randn(3, K, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    truth = (
        reference_gradients(
            student.double(), None if teacher is None else teacher.double(), label, upstream, temperature, divergence
        )
        if K > 1 or teacher is not None or label is not None
        else (torch.zeros(3, K, N).double(), torch.zeros(K, N, C).double())
    )
    terms, dstudent = gradients(student, teacher, label, upstream, temperature=temperature, divergence=divergence)
    scale = max(1.0, truth[0].abs().max().item()) if truth[0].numel() else 1.0
    assert err(terms, truth[0]) <= 5e-6 * scale
    assert err(dstudent, truth[1]) <= 4 * ATOL[dtype] * max(1.0, temperature) * (
        1 + upstream.abs().max().item() if N else 1
    )


def adversarial_rows(dtype):
    """One row per kind: agreement, extremes of +-1e4, masked classes, a one-hot teacher, underflow of both."""
    inf = float("inf")
    student = torch.tensor(
        [[1, 1, 1, 1], [1e4, -1e4, 0, 5], [0, -inf, 1, 2], [1, 2, 3, 4], [0, -200, -200, -200], [-3, 0, 3, 1]],
        dtype=dtype,
    )
    teacher = torch.tensor(
        [
            [1, 1, 1, 1],
            [1e4, -1e4, 0, 5],
            [1, -inf, 0, 2],
            [-inf, -inf, 0, -inf],
            [0, -200, -200, -200],
            [1e4, 0, 0, 0],
        ],
        dtype=dtype,
    )
    return (
        torch.stack([student, student + 1e-3, student.flip(0).roll(3, 0)]),
        teacher,
        torch.tensor([0, 0, 2, 2, 0, -100]),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "js"])
def test_adversarial_rows_give_the_closed_form(dtype, divergence):
    student, teacher, label = adversarial_rows(dtype)
    upstream = torch.ones(3, *student.shape[:2], dtype=torch.float64)
    code = DIVERGENCES[divergence]
    wide = (student.double(), teacher.double(), label)
    truth = reference.distill_terms(*wide, 2.0, code), reference.row_gradient(upstream, *wide, 2.0, code)
    terms, dstudent = gradients(student, teacher, label, upstream, temperature=2.0, divergence=divergence)
    torch.testing.assert_close(terms.double(), truth[0], rtol=2e-5, atol=2e-5, equal_nan=True)
    torch.testing.assert_close(dstudent.double(), truth[1], rtol=8e-3, atol=ATOL[dtype] * 4, equal_nan=True)
    assert torch.isfinite(terms[:2, :2, :3]).all()


@pytest.mark.parametrize("fill", [-1e6, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("K, divergence", [(4, "kl"), (5, "kl"), (3, "reverse_kl"), (3, "js")])
def test_a_class_that_some_mask_with_a_large_number_leaves_the_others_as_they_are(K, divergence, fill):
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(K, 64, 5, generator=g), torch.randn(64, 5, generator=g)
    student[0, :, 1] = student[1, :32, 1] = fill
    ours = distill_terms(student, teacher, divergence=divergence)[2]
    truth = reference.distill_terms(student.double(), teacher.double(), None, 1.0, DIVERGENCES[divergence])[2]
    kept = truth < 1e3
    assert kept[2:].all() and kept[1, 32:].all() and not kept[0].any()
    torch.testing.assert_close(ours[kept].double(), truth[kept], rtol=2e-6, atol=2e-6)


def test_students_that_nearly_agree_keep_their_divergence():
    # A - Q l subtracts like terms: uncentred, fp32 loses 31% at this distance
    g = torch.Generator().manual_seed(0)
    base = torch.randn(1, 64, 100, generator=g)
    student = base + 1e-3 * torch.randn(4, 64, 100, generator=g)
    truth = reference.distill_terms(student.double(), None, None)[2]
    ours = distill_terms(student)[2]
    assert ((ours.double().sum(1) - truth.sum(1)).abs() / truth.sum(1)).max() < 0.03


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck(divergence, draw):
    student, teacher, label = draw(3, 3, 5)
    student.requires_grad_()
    options = dict(temperature=1.0 if divergence == "mse" else 1.5, divergence=divergence)
    r = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)

    # the gradient of peers holds the other students constant, so each student is checked alone
    for k in range(3):

        def terms(row, k=k):
            return distill_terms(
                torch.cat([student[:k].detach(), row[None], student[k + 1 :].detach()]), teacher, label, **options
            )[:, k]

        def loss(row, k=k):
            whole = torch.cat([student[:k].detach(), row[None], student[k + 1 :].detach()])
            value, means = distill_loss(whole, teacher, label, row_weight=r, weights=(1.0, 0.5, 2.0), **options)
            return (
                value
                - (
                    torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)[:, None]
                    * torch.cat([means[:, :k], means[:, k + 1 :]], 1)
                ).sum()
            )

        row = student[k].detach().requires_grad_()
        assert torch.autograd.gradcheck(terms, row)
        assert torch.autograd.gradcheck(loss, row)


def test_row_of_weight_zero_is_masked_not_multiplied(draw, full_loss):
    student, teacher, label = draw(2, 4, 6, torch.float32)
    label[:] = -100
    r = torch.tensor([1.0, 0.0, 2.0, 1.0])
    clean = full_loss((student, teacher, label), (1.0, 1.0, 1.0), r)
    student[:, 1], teacher[1] = torch.nan, torch.nan
    for ours, expected in zip(full_loss((student, teacher, label), (1.0, 1.0, 1.0), r), clean, strict=True):
        torch.testing.assert_close(torch.nan_to_num(ours), expected if ours.dim() != 3 else torch.nan_to_num(expected))
        assert not ours.isnan().any()
    terms, dstudent = gradients(
        student, teacher, label, torch.tensor([0.0, 1.0, 1.0])[:, None, None] * r.expand(3, 2, 4)
    )
    assert terms[1:, :, 1].isnan().all() and not dstudent.isnan().any()


def test_nan_in_a_counted_row_is_not_hidden(draw, full_loss):
    student, teacher, label = draw(2, 4, 6, torch.float32)
    student[0, 2, 1] = torch.nan
    loss, means, dstudent = full_loss((student, teacher, label), (1.0, 1.0, 1.0))
    assert loss.isnan() and means[1, 0].isnan() and dstudent[0, 2].isnan().all() and not dstudent[:, 0].isnan().any()


def test_denominators_join_micro_batches_into_one_large_batch(draw, full_loss):
    student, teacher, label = draw(3, 12, 5, torch.float64)
    r = torch.rand(12, dtype=torch.float64)
    whole = full_loss((student, teacher, label), (1.0, 0.5, 0.25), r)
    d = torch.stack([(label != -100).sum().double(), r.sum()])
    parts = [
        full_loss((student[:, part], teacher[part], label[part]), (1.0, 0.5, 0.25), r[part], d)
        for part in (slice(0, 3), slice(3, 10), slice(10, 12))
    ]
    torch.testing.assert_close(sum(p[0] for p in parts), whole[0])
    torch.testing.assert_close(sum(p[1] for p in parts), whole[1])
    torch.testing.assert_close(torch.cat([p[2] for p in parts], 1), whole[2])


def test_denominator_of_zero_gives_zero(draw, full_loss):
    student, teacher, label = draw(2, 4, 6, torch.float32)
    label[:] = -100
    for r, d in ((torch.zeros(4), None), (None, (0.0, 0.0))):
        loss, means, dstudent = full_loss((student, teacher, label), (1.0, 1.0, 1.0), r, d)
        assert loss == 0 and not means.any() and not dstudent.any()


def test_each_argument_changes_something(draw, full_loss):
    student, teacher, label = draw(2, 4, 6, torch.float32)
    base = full_loss((student, teacher, label), (1.0, 1.0, 1.0))[0]
    changed = [
        full_loss((student, None, label), (1.0, 1.0, 1.0)),
        full_loss((student, teacher, None), (1.0, 1.0, 1.0)),
        *(full_loss((student, teacher, label), tuple(2.0 if i == j else 1.0 for j in range(3))) for i in range(3)),
        full_loss((student, teacher, label), (1.0, 1.0, 1.0), torch.tensor([1.0, 2, 3, 4])),
        full_loss((student, teacher, label), (1.0, 1.0, 1.0), None, (3.0, 4.0)),
        full_loss((student, teacher, label), (1.0, 1.0, 1.0), None, (2.0, 7.0)),
        full_loss((student, teacher, label), (1.0, 1.0, 1.0), temperature=2.0),
        *(full_loss((student, teacher, label), (1.0, 1.0, 1.0), divergence=d) for d in ("reverse_kl", "js", "mse")),
    ]
    losses = [base.item(), *(c[0].item() for c in changed)]
    assert len({round(x, 5) for x in losses}) == len(losses)
