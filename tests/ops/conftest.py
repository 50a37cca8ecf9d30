"""Inputs and the whole loss, for every file of tests of the ops' loss."""

from __future__ import annotations

import pytest
import torch

from nanonet import distill_loss


@pytest.fixture(scope="session")
def draw():
    """Makes student (K,N,C), teacher (N,C) and label (N,), every other row unlabelled."""

    def draw(K=3, N=5, C=7, dtype=torch.float64, seed=0, spread=3.0):
        g = torch.Generator().manual_seed(seed)
        student = (spread * torch.randn(K, N, C, generator=g, dtype=torch.float64)).to(dtype)
        teacher = (spread * torch.randn(N, C, generator=g, dtype=torch.float64)).to(dtype)
        label = torch.randint(0, C, (N,), generator=g)
        label[::2] = -100
        return student, teacher, label

    return draw


@pytest.fixture(scope="session")
def full_loss():
    """The loss, its means and the gradient of student."""

    def full_loss(inputs, weights, row_weight=None, denominators=None, **options):
        student, teacher, label = inputs
        student = student.detach().requires_grad_()
        loss, means = distill_loss(
            student, teacher, label, weights=weights, row_weight=row_weight, denominators=denominators, **options
        )
        loss.backward()
        return loss.detach(), means, student.grad

    return full_loss
