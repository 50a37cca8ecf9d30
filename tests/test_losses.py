"""Class weights: what every labelled row adds, against torch's own weighted cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from nanonet.losses import DistillLoss, balanced_weight

LABEL = torch.tensor([0, 0, 0, 1, 2, -100, -100])


@pytest.mark.parametrize("divergence", ["kl", "mse"])
@pytest.mark.parametrize("denominators", [None, torch.tensor([5.0, 9.0])])
def test_a_class_weight_weighs_the_labelled_rows(divergence: str, denominators: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 3, requires_grad=True), torch.randn(7, 3)
    weight = torch.tensor([0.5, 1.0, 3.0])
    plain = DistillLoss(0.0, 0.8, 0.3, divergence=divergence)
    loss, means = DistillLoss(0.7, 0.8, 0.3, divergence=divergence, class_weight=weight)(
        student, teacher, LABEL, denominators=denominators
    )
    (gradient,) = torch.autograd.grad(loss, student)
    ce = torch.stack([cross_entropy(s, LABEL, weight, reduction="sum") for s in student]) / 5
    soft, soft_means = plain(student, teacher, LABEL, denominators=denominators)
    wanted = 0.7 * ce.sum() + soft
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, student)[0])
    torch.testing.assert_close(means, torch.cat([ce[None].detach(), soft_means[1:]]))


def test_equal_weights_change_nothing() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 3), torch.randn(7, 3)
    for label in (LABEL, None, torch.full((7,), -100)):
        plain, weighted = DistillLoss()(student, teacher, label), DistillLoss(class_weight=torch.ones(3))
        for a, b in zip(plain, weighted(student, teacher, label), strict=True):
            torch.testing.assert_close(a, b)


def test_balanced_weights_give_every_class_the_same_share() -> None:
    weight = balanced_weight(LABEL, 3)
    assert torch.allclose(weight * torch.tensor([3, 1, 1]), torch.full((3,), 5 / 3))
    assert torch.equal(balanced_weight(torch.tensor([0, -100]), 2), torch.tensor([0.5, 0.0]))
