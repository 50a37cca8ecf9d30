"""DistillKit's dense losses, against their formulas."""

from types import SimpleNamespace

import pytest
import torch

from nanonet.compat.distillkit import JSDLoss, KLDLoss, TVDLoss, dense_js_div, dense_kl_div, dense_tvd, sparse_kl_div


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


def signal_of(teacher, k, temperature=1.0):
    values, ids = (teacher / temperature).log_softmax(-1).topk(k)
    return SimpleNamespace(sparse_ids=ids, sparse_values=values, log_values=True, generation_temperature=temperature)


@pytest.mark.parametrize("missing", [None, "ZERO", SimpleNamespace(name="SYMMETRIC_UNIFORM")])
def test_sparse_kl_is_the_formula(missing, draw, same):
    student, teacher, labels = draw(3, 4, 9)
    mask = labels != -100

    def formula(s, t):
        values, ids = (t / 2).log_softmax(-1).topk(4)
        log_q = (s / 2).log_softmax(-1).gather(-1, ids)
        rows = (values.exp() * (values - log_q)).sum(-1)
        if hasattr(missing, "name"):
            p, q = 1 - values.exp().sum(-1), 1 - log_q.exp().sum(-1)
            rows = rows + p * (p / q).log()
        return 4 * (rows * mask).sum() / mask.sum()

    loss = KLDLoss(2.0, missing)
    same(
        lambda s, t: loss(SimpleNamespace(logits=s), signal_of(t, 4, 2.0), mask),
        formula,
        student,
        teacher,
    )


def test_dtypes_and_names(draw):
    student, teacher, _ = draw(2, 3, 5, dtype=torch.bfloat16)
    assert [dense(student, teacher).dtype for dense, _ in KINDS.values()] == [torch.bfloat16] * 2 + [torch.float32]
    assert [loss.name() for _, loss in KINDS.values()] == list(KINDS)
    assert not KLDLoss(temperature=1.0).requires_hidden_states()


def test_what_is_not_offered_raises(draw):
    student, teacher, _ = draw(2, 3, 5)
    sparse = signal_of(teacher, 3)
    for loss in (JSDLoss, TVDLoss):
        with pytest.raises(NotImplementedError, match="a sparse teacher is offered for kl alone"):
            loss(1.0)(SimpleNamespace(logits=student), sparse)
    with pytest.raises(NotImplementedError, match="temperature 2.0: only the one that"):
        KLDLoss(2.0)(SimpleNamespace(logits=student), sparse)
    with pytest.raises(NotImplementedError, match="log_target"):
        sparse_kl_div(student, sparse.sparse_ids, sparse.sparse_values, log_target=False)
    with pytest.raises(ValueError, match="missing: expected ZERO or SYMMETRIC_UNIFORM"):
        sparse_kl_div(student, sparse.sparse_ids, sparse.sparse_values, missing="uniform")
    with pytest.raises(ValueError, match="eps: a tail below"):
        sparse_kl_div(student, sparse.sparse_ids, sparse.sparse_values, eps=1e-4)
    with pytest.raises(ValueError, match="missing: expected ZERO"):
        TVDLoss(1.0, missing_probability_handling="zero")
    with pytest.raises(ValueError, match="teacher"):
        dense_kl_div(student, student)
