"""The raw ops take nobody down: wild arguments, memory that is not there, and shapes that multiply past int64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanonet import cohort_linear, distill_linear_loss, distill_terms
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


RAW = {  # what torch would broadcast or leave over, by the argument that is another's
    "weights of more students": dict(weight=[torch.zeros(4, 5, 6)]),
    "a list of too few weights": dict(weight=[torch.zeros(5, 6)] * 2),
    "a bias for every class": dict(bias=[torch.zeros(1)]),
    "a teacher of one row": dict(teacher=(torch.zeros(1, 5), None, None)),
    "a teacher's bias for every class": dict(teacher=(torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(1))),
    "labels of more rows": dict(label=torch.zeros(3, dtype=torch.int64)),
    "row weights of more rows": dict(row_weight=torch.ones(3)),
    "no chunk": dict(chunk=0),
    "two needs": dict(needs=[True, True]),
}


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("grad", [False, True])
def test_the_raw_loss_from_hidden_states_broadcasts_nothing(kind, grad):
    given = dict(
        weight=[torch.zeros(3, 5, 6)], bias=[], teacher=(None, None, None), label=None, row_weight=None, chunk=4
    )
    given |= dict(needs=[True] * 3)

    def call(hidden, weight, bias, teacher, label, row_weight, chunk, needs):
        top, codes = (None, None, 0), (1.0, 0, 0.0)
        by = (label, torch.ones(3), row_weight, torch.ones(2), *codes, chunk, False, needs)
        return torch.ops.nanonet.distill_linear_loss([hidden], weight, bias, *teacher, *top, *by)

    hidden = torch.zeros(3, 2, 6, requires_grad=grad)
    assert call(hidden, **given)[1].shape == (3, 3)
    with pytest.raises(ValueError):
        call(hidden, **(given | RAW[kind]))


def test_other_raw_ops_of_linear_layers_broadcast_nothing():
    ops = torch.ops.nanonet
    ops.project_into_(
        torch.empty(2, 5, dtype=torch.float64), torch.zeros(2, 0).half(), torch.zeros(5, 0), torch.ones(5)
    )
    for logits, x, bias in (
        (torch.empty(3, 5), (2, 6), None),
        (torch.empty(2, 5), (2, 7), None),
        (torch.empty(2, 5), (2, 6), 1),
    ):
        with pytest.raises(ValueError, match="logits: expected"):
            ops.project_into_(logits, torch.zeros(x), torch.zeros(5, 6), None if bias is None else torch.ones(bias))
    x, weight = torch.zeros(3, 2, 6), torch.zeros(5, 6)
    others = None, None, None, None, 0.0
    for bias in (torch.zeros(1, 5), torch.zeros(3, 1), torch.zeros(5)):
        with pytest.raises(ValueError, match="bias: expected"):
            ops.cohort_linear(x, weight, bias, *others)
    with pytest.raises(ValueError, match="one student or more"):
        ops.cohort_linear(torch.zeros(0, 2, 6), weight, None, *others)
    good = torch.zeros(3, 2, 5), x, None, weight, None, None, None, None, 0.0, False, [True, True, True, False, False]
    assert ops.cohort_linear_backward(*good)[0].shape == x.shape
    for i, wrong in (
        (0, torch.zeros(1, 2, 5)),
        (0, torch.zeros(3, 1, 5)),
        (1, x[:1]),
        (6, torch.ones(1)),
        (10, [True]),
    ):
        with pytest.raises(ValueError):
            ops.cohort_linear_backward(*good[:i], wrong, *good[i + 1 :])


def test_states_of_no_width_are_a_loss_too():
    hidden, weight = torch.zeros(2, 3, 0, dtype=torch.bfloat16, requires_grad=True), torch.zeros(4, 0)
    loss, _ = distill_linear_loss(hidden, weight, torch.randn(3, 4))
    loss.backward()
    assert loss.isfinite() and hidden.grad.shape == hidden.shape
