"""The pool of freed gradients: reused, bounded, given back, and never shared."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nanonet import distill_loss, distill_terms
from nanonet.backends import cpp

pytestmark = pytest.mark.skipif(cpp.load() is not None, reason="nanonet._C was not built")
K, N, C = 2, 40, 5000  # a gradient of 1.6 MB


def gradient(scale=1.0):
    g = torch.Generator().manual_seed(0)
    student = (scale * torch.randn(K, N, C, generator=g)).requires_grad_()
    teacher = torch.randn(N, C, generator=g)
    return torch.autograd.grad(distill_loss(student, teacher)[0], student)[0]


def test_a_freed_gradient_serves_the_next_and_is_given_back():
    cpp.release_pool()
    one = gradient()
    address, value = one.data_ptr(), one.clone()
    assert cpp.release_pool() == 0  # it lives
    del one
    again = gradient()
    assert again.data_ptr() == address and torch.equal(again, value)
    other = gradient()
    assert other.data_ptr() != address
    del again, other
    assert cpp.release_pool() >= 2 * K * N * C * 4
    assert cpp.release_pool() == 0


def test_a_view_holds_its_buffer():
    cpp.release_pool()
    part = gradient()[1, 3]
    value = part.clone()
    assert torch.equal(part, value) and gradient(2.0).data_ptr() != part.untyped_storage().data_ptr()
    assert torch.equal(part, value)


def test_threads_share_no_buffer():
    wanted = {scale: gradient(scale) for scale in (1.0, 2.0, 3.0)}

    def work(scale):
        return all(torch.equal(gradient(scale), wanted[scale]) for _ in range(10))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, wanted))


@pytest.mark.parametrize("megabytes, held", [("0", 0), ("2", 1)])
def test_the_environment_bounds_it(megabytes, held):
    program = f"""
import torch
from nanonet import distill_terms
from nanonet.backends import cpp
leaves = [torch.randn({K}, {N}, {C}, requires_grad=True) for _ in range(3)]
grads = [torch.autograd.grad(distill_terms(leaf).sum(), leaf)[0] for leaf in leaves]
grads.clear()
print(cpp.release_pool() >> 21)
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"NANONET_POOL_MB": megabytes, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and int(run.stdout) == held, run.stderr


def test_small_gradients_stay_with_the_allocator():
    cpp.release_pool()
    student = torch.randn(2, 5, 7, requires_grad=True)
    torch.autograd.grad(distill_terms(student).sum(), student)
    assert cpp.release_pool() == 0


@pytest.mark.parametrize("wrong", ["x", "-1", "1.5"])
def test_a_wrong_size_is_an_error(wrong):
    environment = os.environ | {"NANONET_POOL_MB": wrong}
    run = subprocess.run([sys.executable, "-c", "import nanonet"], env=environment, capture_output=True, text=True)
    assert run.returncode != 0 and f"NANONET_POOL_MB: expected a whole number of megabytes, got '{wrong}'" in run.stderr
