"""DistillKit's losses, against their formulas."""

from types import SimpleNamespace

import pytest
import torch

from nanonet.compat.distillkit import (
    JSDLoss,
    KLDLoss,
    TVDLoss,
    dense_js_div,
    dense_kl_div,
    dense_tvd,
    sparse_js_div,
    sparse_kl_div,
    sparse_tvd,
)


def rows_of(kind, student, teacher, temperature):
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    m = (p + q) / 2
    return {
        "kl": (p * (p / q).log()).sum(-1),
        "jsd": ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2,
        "tvd": (p - q).abs().sum(-1) / 2,
    }[kind]


KINDS = {"kl": (dense_kl_div, KLDLoss), "jsd": (dense_js_div, JSDLoss), "tvd": (dense_tvd, TVDLoss)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [None, "bool", "weights", "column"])
def test_is_the_formula(kind, mask, draw, same):
    student, teacher, labels = draw(3, 4, 9)
    weights = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    masks = {None: None, "bool": labels != -100, "weights": weights, "column": (labels != -100)[..., None]}
    given = masks[mask]
    r = torch.ones(3, 4).double() if given is None else given.double().reshape(3, 4)
    dense, loss = KINDS[kind]
    same(
        lambda s, t: dense(s, t, given, 2.0),
        lambda s, t: (r * rows_of(kind, s, t, 2.0)).sum(),
        student,
        teacher,
    )
    for items in (None, 5, torch.tensor(5)):
        same(
            lambda s, t, n=items: loss(2.0)(SimpleNamespace(logits=s), SimpleNamespace(logits=t), given, None, n),
            lambda s, t, n=items: 4 * (r * rows_of(kind, s, t, 2.0)).sum() / (r.sum() if n is None else n),
            student,
            teacher,
        )


def signal_of(teacher, k, temperature=1.0, log_values=True):
    values, ids = (teacher / temperature).log_softmax(-1).topk(k)
    values = values if log_values else values + 3
    return SimpleNamespace(
        sparse_ids=ids, sparse_values=values, log_values=log_values, generation_temperature=temperature
    )


SPARSE = {"kl": (sparse_kl_div, KLDLoss), "jsd": (sparse_js_div, JSDLoss), "tvd": (sparse_tvd, TVDLoss)}
MISSING = [None, "ZERO", SimpleNamespace(name="SYMMETRIC_UNIFORM")]


def sparse_rows(kind, s, t, missing, tau, generated, log_values):
    """Each row on the k tokens and one class more, by DistillKit's rules."""
    signal = signal_of(t, 4, generated, log_values)
    p = (signal.sparse_values * (generated / tau)).exp()
    q = (s / tau).softmax(-1).gather(-1, signal.sparse_ids)
    uniform = hasattr(missing, "name")
    rest = (1 - signal.sparse_values.exp().sum(-1, keepdim=True)) ** (generated / tau) if uniform else 0 * p[..., :1]
    p = torch.cat([p, rest], -1)
    p, q = p / p.sum(-1, keepdim=True), torch.cat([q, 1 - q.sum(-1, keepdim=True)], -1)
    m = (p + q) / 2
    of_p = lambda other: torch.where(p > 0, p * (p.clamp_min(1e-30) / other).log(), 0 * q)  # noqa: E731
    return {
        "kl": of_p(q).sum(-1),
        "jsd": (of_p(m) + q * (q / m).log()).sum(-1) / 2,
        "tvd": (p - q).abs().sum(-1) / 2,
    }[kind]


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("missing", MISSING, ids=["default", "zero", "uniform"])
@pytest.mark.parametrize("generated,log_values", [(2.0, True), (1.0, True), (1.0, False)])
def test_sparse_losses_are_the_formulas(kind, missing, generated, log_values, draw, same):
    student, teacher, labels = draw(3, 4, 9)
    mask, loss = labels != -100, SPARSE[kind][1](2.0, missing)
    if hasattr(missing, "name") and not log_values:
        with pytest.raises(ValueError, match="logits of some tokens say nothing of the others"):
            loss(SimpleNamespace(logits=student), signal_of(teacher, 4, 1.0, False))
        return
    same(
        lambda s, t: loss(SimpleNamespace(logits=s), signal_of(t, 4, generated, log_values), mask),
        lambda s, t: 4 * (sparse_rows(kind, s, t, missing, 2.0, generated, log_values) * mask).sum() / mask.sum(),
        student,
        teacher,
        atol=1e-5,
    )


def test_the_student_may_have_a_temperature_already(draw, same):
    student, teacher, _ = draw(3, 4, 9)
    signal = signal_of(teacher, 4, 2.0)
    given = dict(temperature=2.0, target_generation_temperature=2.0, student_generation_temperature=4.0)
    same(
        lambda s, t: sparse_tvd(s, signal.sparse_ids, signal.sparse_values, missing="ZERO", **given),
        lambda s, t: sparse_rows("tvd", 4 * s, t, None, 2.0, 2.0, True).sum(),
        student,
        teacher,
        atol=1e-5,
    )


def test_dtypes_and_names(draw):
    student, teacher, _ = draw(2, 3, 5, dtype=torch.bfloat16)
    assert [dense(student, teacher).dtype for dense, _ in KINDS.values()] == [torch.bfloat16] * 2 + [torch.float32]
    assert [loss.name() for _, loss in KINDS.values()] == list(KINDS)
    assert not KLDLoss(temperature=1.0).requires_hidden_states()


def test_what_is_not_offered_raises(draw):
    student, teacher, _ = draw(2, 3, 5)
    sparse = signal_of(teacher, 3)
    with pytest.raises(ValueError, match="missing: expected ZERO or SYMMETRIC_UNIFORM"):
        sparse_kl_div(student, sparse.sparse_ids, sparse.sparse_values, missing="uniform")
    with pytest.raises(ValueError, match="eps: a tail below"):
        sparse_kl_div(student, sparse.sparse_ids, sparse.sparse_values, eps=1e-4)
    with pytest.raises(ValueError, match="missing: expected ZERO"):
        TVDLoss(1.0, missing_probability_handling="zero")
    with pytest.raises(ValueError, match="teacher"):
        dense_kl_div(student, student)
