"""speculators' losses of each position, against their formulas."""

import pytest
import torch

from nanonet.compat import speculators
from nanonet.testing import check_distillation


def formulas(student, teacher, eta=3.0):
    """Every loss by probabilities, (1,T)."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    m = (p + q) / 2
    overlap = torch.minimum(p, q).sum(-1)
    kl, weight = (p * (p / q).log()).sum(-1), torch.exp(-eta * overlap.detach())
    return {
        "kl_div_loss": kl,
        "reverse_kl_div_loss": (q * (q / p).log()).sum(-1),
        "js_div_loss": ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2,
        "ce_loss": -q.log().gather(-1, teacher.argmax(-1, keepdim=True))[..., 0],
        "tv_loss": 1 - overlap,
        "neg_log_acceptance_loss": -overlap.clamp_min(1e-5).log(),
        "lk_hybrid_loss": weight * kl + (1 - weight) * (1 - overlap),
    }


NAMES = {
    "kl_div_loss": "fused_kl_div_loss",
    "reverse_kl_div_loss": "fused_reverse_kl_div_loss",
    "js_div_loss": "fused_js_div_loss",
    "ce_loss": "fused_ce_loss",
    "tv_loss": "fused_tv_loss",
    "neg_log_acceptance_loss": "fused_nla_loss",
    "lk_hybrid_loss": "fused_lk_hybrid_loss",
}


@pytest.mark.parametrize("name,fused", NAMES.items())
@pytest.mark.parametrize("shape", [(1, 6, 40), (2, 3, 9)])
def test_is_the_formula(name, fused, shape, draw, same):
    student, teacher, _ = draw(*shape)
    fn = getattr(speculators, name)
    assert getattr(speculators, fused) is fn
    assert fn(student, teacher).shape == shape[:-1]
    same(fn, lambda s, t: formulas(s, t)[name], student, teacher)


def test_eta_of_the_hybrid_and_no_overlap(draw, same):
    student, teacher, _ = draw(1, 4, 11)
    same(
        lambda s, t: speculators.lk_hybrid_loss(s, t, eta=0.5),
        lambda s, t: formulas(s, t, 0.5)["lk_hybrid_loss"],
        student,
        teacher,
    )
    apart = torch.eye(4)[None, :2] * 200
    assert speculators.neg_log_acceptance_loss(apart, apart.flip(1)).isfinite().all()


@pytest.mark.parametrize("name,divergence", [("kl_div_loss", "kl"), ("js_div_loss", "js"), ("tv_loss", "tv")])
def test_conforms(name, divergence):
    fn = getattr(speculators, name)
    check_distillation(lambda s, t: fn(s[None], t[None])[0], divergence=divergence).raise_failures()


def test_a_target_that_wants_a_gradient_raises(draw):
    student, _, _ = draw(1, 3, 5)
    for name in NAMES.keys() - {"ce_loss"}:
        with pytest.raises(ValueError, match="teacher"):
            getattr(speculators, name)(student, student)
