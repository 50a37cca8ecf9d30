"""distill_terms and distill_loss: whatever backend serves them, against the definition in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.distill import (
    BETAS,
    CASES,
    DTYPES,
    assert_no_worse,
    check_terms,
    codes_of,
    draw,
    loss_and_gradient,
    options_of,
    terms_and_gradient,
    wide,
)

from nanonet import distill_loss, distill_terms, reference
from nanonet.reference import DEFAULT_BETA, DIVERGENCES


def kl(a, b):
    return (a * (a / b).log()).sum()


def naive(p, q, divergence, beta):
    """D(p, q) once more, from the probabilities: the reference itself is judged against it."""
    b = DEFAULT_BETA.get(divergence) if beta is None else beta
    match divergence:
        case "kl":
            return kl(p, q)
        case "reverse_kl":
            return kl(q, p)
        case "js":
            return b * kl(p, b * p + (1 - b) * q) + (1 - b) * kl(q, b * p + (1 - b) * q)
        case "symmetric_kl":
            return b * kl(p, q) + (1 - b) * kl(q, p)
        case "skew_kl":
            return kl(p, b * p + (1 - b) * q)
        case "skew_reverse_kl":
            return kl(q, b * q + (1 - b) * p)
        case "tv":
            return (p - q).abs().sum() / 2
        case "cross_entropy":
            return -(p * q.log()).sum()
    raise AssertionError(f"no definition of {divergence} here")


def naive_terms(student, teacher, label, temperature, divergence, beta):
    """Row by row and pair by pair in Python."""
    K, N, C = student.shape
    terms = torch.zeros(3, K, N, dtype=torch.float64)
    for k, n in itertools.product(range(K), range(N)):
        q = torch.softmax(student[k, n] / temperature, 0)
        p = torch.softmax(teacher[n] / temperature, 0)
        if label[n] != -100:
            terms[0, k, n] = -torch.log(torch.softmax(student[k, n], 0)[label[n]])
        mse = divergence == "mse"
        apart = ((student[k, n] - teacher[n]) ** 2).mean() if mse else naive(p, q, divergence, beta)
        terms[1, k, n] = temperature**2 * apart
        for j in set(range(K)) - {k}:
            r = torch.softmax(student[j, n] / temperature, 0)
            between = ((student[k, n] - student[j, n]) ** 2).mean() if mse else kl(r, q)
            terms[2, k, n] += temperature**2 / (K - 1) * between
    return terms


@pytest.mark.parametrize("divergence,beta", CASES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_reference_is_the_definition(divergence, beta, temperature):
    temperature, code, b = codes_of(divergence, beta, temperature)
    inputs = draw()
    ours = reference.distill_terms(*inputs, temperature, code, b)
    torch.testing.assert_close(ours, naive_terms(*inputs, temperature, divergence, beta), rtol=1e-12, atol=1e-12)


# K=1 has no peers; N=0 and 1 are edges; C=1 has no choice, 7 and 33 are ragged, 1000 spans many vectors
@pytest.mark.parametrize("K,N,C", [(1, 3, 7), (2, 1, 4), (2, 0, 4), (3, 5, 33), (4, 2, 1000), (2, 3, 1), (8, 4, 17)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence,beta", CASES)
def test_terms_and_gradients(K, N, C, dtype, divergence, beta):
    check_terms(draw(K, N, C, dtype), divergence, beta, 2.0)


@pytest.mark.parametrize("divergence,beta", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_student", [False, True])
def test_loss_is_the_weighted_sum_of_the_terms(divergence, beta, dtype, per_student):
    temperature, code, b = codes_of(divergence, beta, 1.7)
    K, N = 3, 6
    inputs = draw(K, N, 11, dtype)
    r = torch.rand(*((K, N) if per_student else (N,)), generator=torch.Generator().manual_seed(2))
    w = (0.7, 1.3, 0.4)

    def by_definition(student, teacher, label):
        student = student.detach().requires_grad_()
        terms = reference.distill_terms(student, teacher, label, temperature, code, b)
        full = r.to(terms.dtype).expand(K, N)
        soft = (full * terms[1:]).sum(-1) / full.sum(-1)
        means = torch.cat([terms[:1].sum(-1) / (label != -100).sum(), soft])
        loss = (torch.tensor(w, dtype=terms.dtype)[:, None] * means).sum()
        loss.backward()
        return loss.detach(), means.detach(), student.grad

    truth, same = by_definition(*wide(*inputs)), by_definition(*inputs)
    got = loss_and_gradient(inputs, w, r, **options_of(divergence, beta, temperature))
    assert got[0].shape == () and not got[1].requires_grad
    for ours, torchs, exact in zip(got, same, truth, strict=True):
        assert_no_worse(ours, torchs, exact)


@settings(max_examples=100, deadline=None)
@given(
    K=st.integers(1, 5),
    N=st.integers(0, 9),
    C=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    case=st.sampled_from(CASES),
    temperature=st.floats(0.5, 8),
    layout=st.sampled_from(["plain", "swapped", "sliced", "expanded"]),
    parts=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]),
    seed=st.integers(0, 1000),
)
def test_any_shape_layout_and_option(K, N, C, dtype, case, temperature, layout, parts, seed):
    student, teacher, label = draw(K, N, C, dtype, seed)
    student = {
        "plain": student,
        "swapped": student.transpose(0, 2).contiguous().transpose(0, 2),
        "sliced": torch.cat([student, student], -1)[..., ::2][..., :C],
        "expanded": student[:1].expand(K, N, C),
    }[layout]
    inputs = student, teacher if parts[0] else None, label if parts[1] else None
    upstream = torch.randn(3, K, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    check_terms(inputs, *case, temperature, upstream)


def adversarial_rows(dtype):
    """One row per kind: agreement, extremes of +-1e4, masked classes, a one-hot teacher, underflow of both, of the
    teacher's, of the student's."""
    inf = float("inf")
    student = [[1, 1, 1, 1], [1e4, -1e4, 0, 5], [0, -inf, 1, 2], [1, 2, 3, 4], [0, -200, -200, -200], [-3, 0, 3, 1]]
    teacher = [[1, 1, 1, 1], [1e4, -1e4, 0, 5], [1, -inf, 0, 2], [-inf, -inf, 0, -inf], [0, -200, -200, -200]]
    student = torch.tensor([*student, [0, 1, -400, 2]], dtype=dtype)
    teacher = torch.tensor([*teacher, [1e4, 0, 0, 0], [0, 1, 2, -400]], dtype=dtype)
    return (
        torch.stack([student, student + 1e-3, student.flip(0).roll(3, 0)]),
        teacher,
        torch.tensor([0, 0, 2, 2, 0, -100, 1]),
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence,beta", [case for case in CASES if case[0] != "mse"])
def test_adversarial_rows_give_the_closed_form(dtype, divergence, beta, temperature):
    student, teacher, label = adversarial_rows(dtype)
    upstream = torch.ones(3, *student.shape[:2], dtype=torch.float64)
    codes = codes_of(divergence, beta, temperature)
    precise = wide(student, teacher, label)
    truth = reference.distill_terms(*precise, *codes), reference.row_gradient(upstream, *precise, *codes)
    # infinitely far from the teacher: a class that has vanished in float32 alone has another infinity in float64
    own = reference.row_gradient(upstream, student, teacher, label, *codes).double()
    wanted = torch.where(own.isfinite() & truth[1].isfinite(), truth[1], own)
    options = options_of(divergence, beta, temperature)
    terms, dstudent = terms_and_gradient(distill_terms, (student, teacher, label), upstream, **options)
    torch.testing.assert_close(terms.double(), truth[0], rtol=2e-6, atol=2e-5, equal_nan=True)
    if divergence == "tv":  # its gradient jumps where p = q
        p, q = (torch.softmax(logits / codes[0], -1) for logits in precise[:2][::-1])
        jumps = ((p - q).abs() < 1e-6).logical_and(q > 1e-6).any(-1)
        assert jumps[:, 2:].logical_not().any()
        dstudent, wanted = dstudent[~jumps], wanted[~jumps]
    rounding = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}[dtype]
    # the slopes of a row are as large as its divergence
    apart = truth[0][1].nan_to_num(0, 0, 0).abs().max().item()
    atol = max(1.0, apart) * (1e-12 if dtype == torch.float64 else 2e-7)
    torch.testing.assert_close(dstudent.double(), wanted, rtol=rounding, atol=max(atol, 1e-5), equal_nan=True)
    assert torch.isfinite(terms[:2, :2, :3]).all()


# 0 and 1 on either side of where float32 underflows (104 below the maximum), and where both have
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence,beta", CASES)
def test_gradients_where_probabilities_underflow_are_finite_and_float64s(dtype, divergence, beta):
    depths = torch.tensor([0, 80, 95, 104, 110, 150, 300, 700], dtype=torch.float64)
    student = -torch.stack([depths, depths.flip(0), depths.roll(3), depths * 0])[None].to(dtype)
    teacher = -torch.stack([depths.roll(3), depths, depths.roll(3), depths])[:].to(dtype)
    upstream = torch.ones(3, 1, 4, dtype=torch.float64)
    codes = codes_of(divergence, beta)
    precise = wide(student, teacher)
    exact = reference.row_gradient(upstream, *precise, None, *codes)
    own = reference.row_gradient(upstream, student, teacher, None, *codes)
    terms, dstudent = terms_and_gradient(
        distill_terms, (student, teacher, None), upstream, **options_of(divergence, beta)
    )
    assert terms.isfinite().all() and dstudent.isfinite().all()
    assert_no_worse(dstudent, own, exact)


@pytest.mark.parametrize("fill", [-1e6, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("K", [3, 4, 5])
@pytest.mark.parametrize("divergence", [name for name in DIVERGENCES if name != "mse"])
def test_a_class_that_some_mask_with_a_large_number_leaves_the_others_as_they_are(K, divergence, fill):
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(K, 64, 5, generator=g), torch.randn(64, 5, generator=g)
    student[0, :, 1] = student[1, :32, 1] = fill
    ours = distill_terms(student, teacher, divergence=divergence)[2]
    truth = reference.distill_terms(student.double(), teacher.double(), None, *codes_of(divergence, None))[2]
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


@pytest.mark.parametrize("divergence,beta", CASES)
def test_gradcheck(divergence, beta):
    student, teacher, label = draw(3, 3, 5)
    student.requires_grad_()
    options = options_of(divergence, beta, 1.5)
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


def test_row_of_weight_zero_is_masked_not_multiplied():
    student, teacher, label = draw(2, 4, 6, torch.float32)
    label[:] = -100
    r = torch.tensor([1.0, 0.0, 2.0, 1.0])
    clean = loss_and_gradient((student, teacher, label), (1.0, 1.0, 1.0), r)
    student[:, 1], teacher[1] = torch.nan, torch.nan
    for ours, expected in zip(loss_and_gradient((student, teacher, label), (1.0, 1.0, 1.0), r), clean, strict=True):
        torch.testing.assert_close(torch.nan_to_num(ours), expected if ours.dim() != 3 else torch.nan_to_num(expected))
        assert not ours.isnan().any()
    terms, dstudent = terms_and_gradient(
        distill_terms, (student, teacher, label), torch.tensor([0.0, 1.0, 1.0])[:, None, None] * r.expand(3, 2, 4)
    )
    assert terms[1:, :, 1].isnan().all() and not dstudent.isnan().any()


def test_nan_in_a_counted_row_is_not_hidden():
    student, teacher, label = draw(2, 4, 6, torch.float32)
    student[0, 2, 1] = torch.nan
    loss, means, dstudent = loss_and_gradient((student, teacher, label), (1.0, 1.0, 1.0))
    assert loss.isnan() and means[1, 0].isnan() and dstudent[0, 2].isnan().all() and not dstudent[:, 0].isnan().any()


def test_denominators_join_micro_batches_into_one_large_batch():
    student, teacher, label = draw(3, 12, 5, torch.float64)
    r = torch.rand(12, dtype=torch.float64)
    whole = loss_and_gradient((student, teacher, label), (1.0, 0.5, 0.25), r)
    d = torch.stack([(label != -100).sum().double(), r.sum()])
    parts = [
        loss_and_gradient((student[:, part], teacher[part], label[part]), (1.0, 0.5, 0.25), r[part], d)
        for part in (slice(0, 3), slice(3, 10), slice(10, 12))
    ]
    torch.testing.assert_close(sum(p[0] for p in parts), whole[0])
    torch.testing.assert_close(sum(p[1] for p in parts), whole[1])
    torch.testing.assert_close(torch.cat([p[2] for p in parts], 1), whole[2])


def test_denominator_of_zero_gives_zero():
    student, teacher, label = draw(2, 4, 6, torch.float32)
    label[:] = -100
    for r, d in ((torch.zeros(4), None), (None, (0.0, 0.0))):
        loss, means, dstudent = loss_and_gradient((student, teacher, label), (1.0, 1.0, 1.0), r, d)
        assert loss == 0 and not means.any() and not dstudent.any()


def test_each_argument_changes_something():
    student, teacher, label = draw(2, 4, 6, torch.float32)
    inputs, ones = (student, teacher, label), (1.0, 1.0, 1.0)
    changed = [
        loss_and_gradient(inputs, ones),
        loss_and_gradient((student, None, label), ones),
        loss_and_gradient((student, teacher, None), ones),
        *(loss_and_gradient(inputs, tuple(2.0 if i == j else 1.0 for j in range(3))) for i in range(3)),
        loss_and_gradient(inputs, ones, torch.tensor([1.0, 2, 3, 4])),
        loss_and_gradient(inputs, ones, None, (3.0, 4.0)),
        loss_and_gradient(inputs, ones, None, (2.0, 7.0)),
        loss_and_gradient(inputs, ones, temperature=2.0),
        *(loss_and_gradient(inputs, ones, **options_of(*case)) for case in CASES if case[0] != "kl"),
    ]
    losses = [value[0].item() for value in changed]
    assert len({round(x, 5) for x in losses}) == len(losses)


def test_beta_has_the_default_that_is_documented_and_limits_that_are_other_divergences():
    inputs = draw(1, 4, 6)
    for name, default in DEFAULT_BETA.items():
        assert torch.equal(
            distill_terms(*inputs, divergence=name), distill_terms(*inputs, divergence=name, beta=default)
        )
    limits = [("js", 0, "kl"), ("js", 1, "reverse_kl"), ("symmetric_kl", 1, "kl"), ("symmetric_kl", 0, "reverse_kl")]
    for name, beta, limit in [*limits, ("skew_kl", 0, "kl"), ("skew_reverse_kl", 0, "reverse_kl")]:
        assert torch.equal(distill_terms(*inputs, divergence=name, beta=beta), distill_terms(*inputs, divergence=limit))
    # js near its limits, divided by beta, is what they say
    for name, limit, beta, scale in [("js", "kl", 1e-6, 1e6), ("js", "reverse_kl", 1 - 1e-6, 1e6)]:
        near = scale * distill_terms(*inputs, divergence=name, beta=beta)[1]
        torch.testing.assert_close(near, distill_terms(*inputs, divergence=limit)[1], rtol=1e-3, atol=1e-6)
    assert set(BETAS) >= {0.01, 0.9}
