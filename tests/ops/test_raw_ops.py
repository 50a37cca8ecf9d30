"""The raw ops take nobody down: wild arguments, memory that is not there, and shapes that multiply past int64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanonet import cohort_linear, distill_terms
from nanonet.backends import cpp

SUPPORT = Path(__file__).parents[1] / "support"


def child(*arguments: str, timeout: int = 600) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.skipif(cpp.load() is not None, reason="nanonet._C was not built: the reference broadcasts")
def test_wild_arguments_end_in_an_exception_or_in_numbers_of_the_contract():
    run = child(str(SUPPORT / "fuzz_ops.py"), os.environ.get("NANONET_FUZZ_EXAMPLES", "400"))
    assert run.returncode == 0, f"exit {run.returncode}\n{run.stderr[-3000:]}"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_a_call_that_finds_no_memory_leaves_the_next_one_well():
    program = """
import resource, torch, nanonet
ops = torch.ops.nanonet
def call(K, N):
    label = torch.zeros(1, dtype=torch.int64).expand(N)
    return ops.distill_terms(torch.zeros(1).expand(K, N, 1), None, label, 1.0, 0, 0.0)
before = call(2, 3)[0]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
for _ in range(2):
    try:
        call(4, 1 << 23)
    except (RuntimeError, MemoryError):
        print("refused")
    assert torch.equal(call(2, 3)[0], before)
"""
    run = child("-c", program)
    assert run.returncode == 0 and run.stdout.count("refused") == 2, f"exit {run.returncode}\n{run.stderr[-2000:]}"


@pytest.mark.parametrize("shape", [(1 << 30, 1 << 30, 1), (1 << 29, 1 << 29, 1), (1, 1 << 40, 1 << 21)])
def test_sizes_whose_product_overflows_are_refused(shape):
    student = torch.zeros(1).expand(shape)
    with pytest.raises((ValueError, RuntimeError, MemoryError)):
        torch.ops.nanonet.distill_terms(student, None, None, 1.0, 0, 0.0)


@pytest.mark.parametrize("number", [-1, 9, 1 << 40])
def test_a_number_of_no_divergence_raises(number):
    student, teacher = torch.zeros(2, 3, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="divergence: no"):
        torch.ops.nanonet.distill_terms(student, teacher, None, 1.0, number, 0.0)
    with pytest.raises(ValueError, match="divergence: no"):
        torch.ops.nanonet.distill_loss(student, teacher, None, torch.ones(3), None, None, 1.0, number, 0.0, True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shared_x", [False, True])
@pytest.mark.parametrize("R", [None, 0, 2])
def test_a_linear_layer_without_inputs_gives_bias_or_zeros(bias, shared_x, R):
    K, M, F = 2, 3, 4
    torch.full((K, M, F), torch.nan)  # the allocator hands out what was just freed
    x = torch.zeros(M, 0) if shared_x else torch.zeros(K, M, 0)
    b = torch.randn(K, F) if bias else None
    lora = () if R is None else (torch.zeros(K, R, 0), torch.ones(K, F, R), torch.ones(K))
    y = cohort_linear(x, torch.zeros(K, F, 0), b, *lora)
    assert torch.equal(y, torch.zeros(K, M, F) if b is None else b[:, None].expand(K, M, F))


def test_a_gradient_from_the_pool_is_nobody_elses():
    student, teacher = torch.randn(2, 40, 5000), torch.randn(40, 5000)  # 1.6 MB
    leaves = [(student * scale).requires_grad_() for scale in (1.0, 2.0, 3.0)]
    grads = [torch.autograd.grad(distill_terms(leaf, teacher).sum(), leaf)[0] for leaf in leaves]
    assert len({g.data_ptr() for g in grads}) == 3
    kept = [g.clone() for g in grads]
    del grads[1]
    again = torch.autograd.grad(distill_terms(leaves[1], teacher).sum(), leaves[1])[0]
    assert torch.equal(again, kept[1]) and torch.equal(grads[0], kept[0]) and torch.equal(grads[1], kept[2])
