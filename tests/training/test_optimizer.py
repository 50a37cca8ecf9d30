"""Clipping, schedules, ramps and confidence weights."""

from __future__ import annotations

import pytest
import torch

from nanonet.config.settings import optimizer_settings
from nanonet.config.train import TrainConfig
from nanonet.losses import DistillLoss, confidence, ramp
from nanonet.teacher.soft_labels import calibrate_confidence
from nanonet.training.optimizer import clip_per_student, learning_rate, step_all


def test_clipping_is_per_student() -> None:
    p = torch.nn.Parameter(torch.zeros(2, 3))
    q = torch.nn.Parameter(torch.zeros(2, 2, 2))
    p.grad, q.grad = torch.ones(2, 3), torch.zeros(2, 2, 2)
    p.grad[1] = 1e6
    norms = clip_per_student([p, q], 1.0)
    assert norms.tolist() == pytest.approx([3**0.5, 1e6 * 3**0.5])
    assert p.grad.norm(dim=1).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)
    clip_per_student([p, q], 0.0)
    assert p.grad.norm(dim=1).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)


def test_optimizers_that_share_a_scale_step_before_it_moves() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    both = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in both]
    scaler.scale(2 * both[0].sum() + 3 * both[1].sum()).backward()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    step_all(optimizers, scaler)
    assert both[0].tolist() == [-2.0] * 3 and both[1].tolist() == [-3.0] * 3 and scaler.get_scale() == 16.0
    assert all(p.grad is None for p in both)
    both[1].grad = torch.ones(3)
    step_all(optimizers, None)
    assert both[0].tolist() == [-2.0] * 3 and both[1].tolist() == [-4.0] * 3


def test_schedules() -> None:
    at = lambda step, **k: learning_rate(optimizer_settings(TrainConfig(steps=100, warmup=0.1, **k)), step, 2.0)  # noqa: E731
    assert at(0) == pytest.approx(0.2) and at(9) == pytest.approx(2.0) and at(55) == pytest.approx(1.0)
    assert at(55, schedule="cosine") == pytest.approx(1.0) and at(99, schedule="constant") == 2.0
    assert 0 < at(99) < 0.05


def test_ramps_and_confidence() -> None:
    assert [ramp(x, 0.1, 0.3) for x in (0.0, 0.1, 0.2, 0.3, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert ramp(0.0, 0.0, 0.0) == 1
    loss = DistillLoss(2.0, 3.0, 4.0, teacher_ramp=(0.0, 0.5), peers_ramp=(0.5, 1.0))
    assert loss.weights(0.25) == pytest.approx((2.0, 1.5, 0.0)) and loss.weights(0.75) == pytest.approx((2.0, 3.0, 2.0))
    found = confidence(torch.tensor([[0.0, 0, 0, 0], [50.0, 0, 0, 0]]))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


def test_calibration_sets_the_mean_confidence() -> None:
    logits = 9 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    for cv_accuracy, wanted in ((0.2, 0.6), (0.7, 0.7), (0.95, 0.95)):  # not below halfway between chance and certainty
        p = calibrate_confidence(logits, cv_accuracy).softmax(-1)
        assert p.amax(-1).mean().item() == pytest.approx(wanted, abs=1e-3)
        assert torch.equal(p.argmax(-1), logits.argmax(-1))
