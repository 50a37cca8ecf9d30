"""Logits of a student and a teacher, and labels of which some are ignored."""

import pytest
import torch


@pytest.fixture(scope="session")
def draw():
    """Makes student and teacher (*shape) and labels (*shape[:-1]), every third -100."""

    def draw(*shape, dtype=torch.float32, seed=0):
        g = torch.Generator().manual_seed(seed)
        student, teacher = (2 * torch.randn(2, *shape, generator=g, dtype=torch.float64)).to(dtype)
        labels = torch.randint(0, shape[-1], shape[:-1], generator=g)
        labels.view(-1)[::3] = -100
        return student.requires_grad_(), teacher, labels

    return draw


@pytest.fixture(scope="session")
def same():
    """Asserts that two functions of student and teacher agree in value and gradient, the second in float64."""

    def same(fn, formula, student, teacher, rtol=1e-5, atol=1e-6):
        value = fn(student, teacher)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        wide = student.detach().double().requires_grad_()
        truth = formula(wide, teacher.double())
        (exact,) = torch.autograd.grad(truth.sum(), wide)
        assert value.shape == truth.shape
        torch.testing.assert_close(value.double(), truth, rtol=rtol, atol=atol)
        torch.testing.assert_close(gradient.double(), exact, rtol=rtol, atol=atol)

    return same
