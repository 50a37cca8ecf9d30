"""DistillKit's dense losses, against their formulas."""

from types import SimpleNamespace

import pytest
import torch

from nanonet.compat import distillkit
from nanonet.compat.distillkit import JSDLoss, KLDLoss, TVDLoss, dense_js_div, dense_kl_div, dense_tvd


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


def test_dtypes_and_names(draw):
    student, teacher, _ = draw(2, 3, 5, dtype=torch.bfloat16)
    assert [dense(student, teacher).dtype for dense, _ in KINDS.values()] == [torch.bfloat16] * 2 + [torch.float32]
    assert [loss.name() for _, loss in KINDS.values()] == list(KINDS)
    assert not KLDLoss(temperature=1.0).requires_hidden_states()


def test_what_is_not_offered_raises(draw):
    student, teacher, _ = draw(2, 3, 5)
    sparse = SimpleNamespace(sparse_ids=teacher.long(), sparse_values=teacher)
    with pytest.raises(NotImplementedError, match="sparse teachers are not offered"):
        KLDLoss(1.0)(SimpleNamespace(logits=student), sparse)
    for options in ({"missing_probability_handling": "zero"}, {"sparse_chunk_length": 4}):
        with pytest.raises(NotImplementedError, match="sparse teachers are not offered"):
            TVDLoss(1.0, **options)
    assert not hasattr(distillkit, "sparse_kl_div")
    with pytest.raises(ValueError, match="teacher"):
        dense_kl_div(student, student)
