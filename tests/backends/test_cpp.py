"""The compiled CPU kernels against the reference, each instruction set in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.distill import CASES, DTYPES, assert_no_worse, check_raw, codes_of, wide

import nanonet
from nanonet import backends, reference
from nanonet.backends import cpp
from nanonet.device import threads
from nanonet.reference import DIVERGENCES

pytestmark = pytest.mark.skipif(cpp.load() is not None, reason="nanonet._C was not built")
OPS = torch.ops.nanonet


def logits(*shape, dtype=torch.float32, seed=0):
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def labels(N, C):
    label = torch.arange(N) % C
    label[1::3] = -100
    return label


def check_grid():
    for dtype in DTYPES:
        # 4, 48: rows in the lanes; 49: the first that is not; 2051: chunks and a ragged vector
        for K, N, C in [(1, 3, 4), (2, 18, 48), (3, 5, 49), (4, 3, 2051), (6, 4, 40)]:
            student, teacher, label = logits(K, N, C, dtype=dtype), logits(N, C, dtype=dtype, seed=1), labels(N, C)
            for name in DIVERGENCES:
                check_raw(student, teacher, label, *codes_of(name, None))
            for divergence in (0, 2):
                for tau in (2.0, 2.5):  # 2.5: no power, so ce takes exponentials of its own
                    check_raw(student, teacher, label, tau, divergence)
                check_raw(student, teacher, None, 2.5, divergence)
                check_raw(student, None, label, 2.5, divergence)
                check_raw(student, teacher.float(), label, 1.0, divergence, row_weight=torch.arange(N) % 3 / 2)
                some = (torch.arange(K * N).view(K, N) % 4 != 0).float()
                check_raw(student, teacher, label, 1.0, divergence, row_weight=some)
                check_raw(student, teacher, label, 1.0, divergence, weights=(0.0, 1.0, 0.0))


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_is_no_worse_than_the_reference(isa):
    if isa not in cpp.build_info()["isa_compiled"]:
        pytest.skip(f"{isa} is not compiled in")
    tests = Path(__file__).parents[1]
    program = f"import runpy, sys; sys.path.insert(0, {str(tests)!r}); runpy.run_path({__file__!r})['check_grid']()"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"NANONET_CPU_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if "what this CPU has" in run.stderr:
        pytest.skip(f"this CPU lacks {isa}")
    assert run.returncode == 0, run.stderr[-3000:]


def test_an_unknown_instruction_set_is_an_error():
    run = subprocess.run(
        [sys.executable, "-c", "import nanonet"],
        env=os.environ | {"NANONET_CPU_ISA": "sse9"},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0 and "NANONET_CPU_ISA: expected one of baseline" in run.stderr


def test_the_kernels_serve_the_cpu():
    for op in ("distill_terms", "distill_terms_backward", "distill_loss", "distill_loss_into_", "distill_scale_"):
        assert backends.served_by(op, "CPU") == "kernel"
    info = cpp.build_info()
    assert info["isa_in_use"] in info["isa_compiled"] and info["version"] == nanonet.__version__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_into_given_memory(dtype):
    student, teacher, label = logits(2, 9, 70).to(dtype), logits(9, 70, seed=1).to(dtype), labels(9, 70)
    arguments = (student, teacher, label, torch.ones(3), torch.rand(9), None, 2.0, 0, 0.0)
    room = torch.full((4, 9, 70), float("nan"), dtype=dtype)
    loss, means = OPS.distill_loss_into_(room[1:3], *arguments)
    wanted = OPS.distill_loss(*arguments, True)
    assert all(torch.equal(a, b) for a, b in zip((loss, means, room[1:3]), wanted, strict=True))
    assert room[0].isnan().all() and room[3].isnan().all()
    for wrong in (room[:1], room[:2, :, :69], room[:2].double(), room[:2].mT.contiguous().mT):
        with pytest.raises(ValueError, match="dstudent: expected a contiguous tensor"):
            OPS.distill_loss_into_(wrong, *arguments)


# packed rows in blocks that threads cut at other places; long rows; rows of the general path
@pytest.mark.parametrize("K, N, C", [(2, 4100, 4), (2, 37, 5000), (5, 67, 3000)])
def test_bits_do_not_depend_on_threads_runs_or_neighbours(K, N, C):
    student, teacher, label = logits(K, N, C), logits(N, C, seed=1), labels(N, C)
    row_weight = (torch.arange(N) % 7 != 0).float()

    def run():
        return OPS.distill_loss(student, teacher, label, torch.ones(3), row_weight, torch.ones(2), 2.0, 0, 0.0, True)

    before = run()
    for count in (1, 3, 2):
        with threads(count):
            assert all(torch.equal(a, b) for a, b in zip(before, run(), strict=True))
    part = slice(1, 3)
    terms = OPS.distill_terms(student, teacher, label, 2.0, 0, 0.0)[0]
    alone = OPS.distill_terms(student[:, part].clone(), teacher[part].clone(), label[part], 2.0, 0, 0.0)[0]
    assert torch.equal(terms[:, :, part], alone)


@pytest.mark.parametrize("C", [8, 100])
def test_strides_are_read_where_they_lie(C):
    storage, label = logits(40, 3, C + 5), labels(40, C).repeat_interleave(2)[::2]
    student = storage[::2, :, 2 : C + 2].transpose(0, 1)  # (3,20,C)
    check_raw(student, logits(20, 2 * C)[:, ::2], label[:20])  # a teacher whose classes are strided is copied
    check_raw(student[:1].expand(2, 20, C), logits(1, C).expand(20, C), None)


@pytest.mark.parametrize("C", [5, 100])
def test_hard_rows(C):
    student, teacher, label = logits(3, 6, C), logits(6, C, seed=1), labels(6, C)
    student[:, 0] *= 5e3
    teacher[0] *= 5e3
    teacher[1] = -torch.inf
    teacher[1, 2] = 0  # one-hot
    student[:, 2, 3] = teacher[2, 3] = -torch.inf  # a class that nobody has
    student[1, 3, 4] = -torch.inf  # a class that one student lacks: infinitely far
    student[2, 4] = -torch.inf  # a masked row: NaN
    student[0, 5, 0] = torch.nan
    terms = OPS.distill_terms(student, teacher, label, 1.0, 0, 0.0)[0]
    same, truth = (reference.distill_terms(s, t, label) for s, t in ((student, teacher), wide(student, teacher)))
    assert_no_worse(terms, same, truth, atol=2e-6)


@pytest.mark.parametrize("C", [5, 100])
@pytest.mark.parametrize("divergence", range(len(DIVERGENCES)))
def test_nan_does_not_leak_from_a_masked_row(C, divergence):
    student, teacher, label = logits(2, 6, C), logits(6, C, seed=1), labels(6, C)
    label[2] = -100
    row_weight = torch.tensor([1.0, 0.5, 0.0, 1.0, 2.0, 1.0])
    clean = OPS.distill_loss(student, teacher, label, torch.ones(3), row_weight, None, 1.0, divergence, 0.5, True)
    student[:, 2] = torch.nan
    teacher[2] = torch.nan
    got = OPS.distill_loss(student, teacher, label, torch.ones(3), row_weight, None, 1.0, divergence, 0.5, True)
    assert all(torch.equal(a, b) for a, b in zip(got, clean, strict=True))
    assert torch.equal(got[2][:, 2], torch.zeros(2, C))
    upstream = torch.ones(3, 2, 6)
    upstream[:, :, 2] = 0
    stats = OPS.distill_terms(student, teacher, label, 1.0, divergence, 0.5)[1]
    dstudent = OPS.distill_terms_backward(upstream, student, teacher, label, stats, 1.0, divergence, 0.5)
    assert dstudent.isfinite().all() and torch.equal(dstudent[:, 2], torch.zeros(2, C))


def test_stats_of_either_backend_serve_the_other():
    student, teacher, label = logits(3, 7, 50), logits(7, 50, seed=1), torch.arange(7)
    for case in CASES:
        if case[0] == "mse":
            continue
        codes = codes_of(*case, 2.0)
        terms, stats = OPS.distill_terms(student, teacher, label, *codes)
        expected = reference.row_stats(student, teacher, *codes)
        expected[-1, :, 2] = 0  # nobody asks for the teacher's softmax at temperature 1
        torch.testing.assert_close(stats, expected, atol=2e-6, rtol=2e-6)
        upstream = torch.ones_like(terms)
        got = OPS.distill_terms_backward(upstream, student, teacher, label, expected, *codes)
        torch.testing.assert_close(got, reference.row_gradient(upstream, student, teacher, label, *codes))


def test_every_output_element_is_written():
    """The allocator hands out what was just freed: NaN throughout."""
    for K, N, C in [(2, 33, 4), (2, 5, 3000), (5, 4, 50)]:
        student, teacher, label = logits(K, N, C), logits(N, C, seed=1), torch.full((N,), -100)
        for others in ((teacher, None), (None, None), (teacher, label)):
            torch.full((K, N, C), torch.nan)
            row_weight = torch.zeros(N)
            got = OPS.distill_loss(student, *others, torch.ones(3), row_weight, None, 1.0, 0, 0.0, True)
            assert all(x.isfinite().all() for x in got)
            terms, stats = OPS.distill_terms(student, *others, 1.0, 0, 0.0)
            assert terms.isfinite().all() and stats.isfinite().all()


@pytest.mark.parametrize("bad", [-1, 7, -101])
def test_a_label_outside_raises(bad):
    label = torch.tensor([0, bad, 2])
    with pytest.raises(ValueError, match=rf"label\[1\] is {bad}.*< 7"):
        OPS.distill_terms(logits(2, 3, 7), None, label, 1.0, 0, 0.0)


def test_no_rows():
    loss, means, dstudent = OPS.distill_loss(logits(2, 0, 5), None, None, torch.ones(3), None, None, 1.0, 0, 0.0, True)
    assert loss == 0 and torch.equal(means, torch.zeros(3, 2)) and dstudent.shape == (2, 0, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale(dtype):
    gradient = logits(3, 5, 37, dtype=dtype)
    expected = gradient * torch.tensor(0.3)
    OPS.distill_scale_(gradient, torch.tensor(0.3))
    torch.testing.assert_close(gradient, expected)
