"""The compiled CPU kernels against the reference, each instruction set in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nanonet
from nanonet import backends, reference
from nanonet.backends import cpp
from nanonet.device import threads

pytestmark = pytest.mark.skipif(cpp.load() is not None, reason="nanonet._C was not built")
OPS = torch.ops.nanonet
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def logits(*shape, dtype=torch.float32, seed=0):
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def labels(N, C):
    label = torch.arange(N) % C
    label[1::3] = -100
    return label


def wide(*tensors):
    return [t if t is None or not t.is_floating_point() else t.double() for t in tensors]


def assert_no_worse(got, same_dtype, truth, atol=1e-6):
    """err(kernel) <= 2 err(reference in the same dtype) + atol, both against float64; the same infinities and NaN."""
    got, same_dtype = got.double(), same_dtype.double()
    assert torch.equal(got.isnan(), truth.isnan())
    equal = (got == truth) | truth.isnan()
    scale = truth[truth.isfinite()].abs().max().clamp(min=1) if truth.isfinite().any() else 1
    error = torch.where(equal, 0, (got - truth).abs())
    allowed = torch.where(same_dtype == truth, 0, (same_dtype - truth).abs()).nan_to_num(0, 0, 0).max()
    assert error.max() <= 2 * allowed + atol * scale, f"{error.max()} > 2 * {allowed} + {atol * scale}"


def check(student, teacher, label, temperature=1.0, divergence=0, row_weight=None, weights=(0.7, 1.3, 0.5)):
    """Both entry points, forward and backward, with an upstream that is 0 in places."""
    terms, stats = OPS.distill_terms(student, teacher, label, temperature, divergence)
    options = temperature, divergence
    s, t, r = wide(student, teacher, row_weight)
    assert_no_worse(terms, reference.distill_terms(student, teacher, label, *options),
                    reference.distill_terms(s, t, label, *options))  # fmt: skip
    upstream = logits(*terms.shape, dtype=terms.dtype, seed=9)
    upstream[:, :, 2::5] = 0
    got = OPS.distill_terms_backward(upstream, student, teacher, label, stats, *options)
    assert got.dtype == student.dtype and got.is_contiguous()
    assert_no_worse(got, reference.row_gradient(upstream, student, teacher, label, *options),
                    reference.row_gradient(upstream.double(), s, t, label, *options))  # fmt: skip
    w = torch.tensor(weights, dtype=terms.dtype)
    got = OPS.distill_loss(student, teacher, label, w, row_weight, None, *options, True)
    same = reference.distill_loss(student, teacher, label, w, row_weight, None, *options)
    truth = reference.distill_loss(s, t, label, w.double(), r, None, *options)
    for g, m, f in zip(got, same, truth, strict=True):
        assert_no_worse(g, m, f.double())


def check_grid():
    for dtype in TYPES:
        # 4, 48: rows in the lanes; 49: the first that is not; 2051: chunks and a ragged vector
        for K, N, C in [(1, 3, 4), (2, 18, 48), (3, 5, 49), (4, 3, 2051), (6, 4, 40)]:
            student, teacher, label = logits(K, N, C, dtype=dtype), logits(N, C, dtype=dtype, seed=1), labels(N, C)
            for divergence in range(4):
                check(student, teacher, label, 1.0, divergence)
            check(student, teacher, label, 2.0)
            check(student, teacher, None, 2.5)
            check(student, None, label, 2.5)
            check(student, teacher.float(), label, row_weight=torch.arange(N) % 3 / 2)
            check(student, teacher, label, row_weight=(torch.arange(K * N).view(K, N) % 4 != 0).float())
            check(student, teacher, label, weights=(0.0, 1.0, 0.0))


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_is_no_worse_than_the_reference(isa):
    if isa not in cpp.build_info()["isa_compiled"]:
        pytest.skip(f"{isa} is not compiled in")
    program = f"import runpy; runpy.run_path({str(Path(__file__))!r})['check_grid']()"
    run = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"NANONET_CPU_ISA": isa}, capture_output=True, text=True
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
    arguments = (student, teacher, label, torch.ones(3), torch.rand(9), None, 2.0, 0)
    room = torch.full((4, 9, 70), float("nan"), dtype=dtype)
    loss, means = OPS.distill_loss_into_(room[1:3], *arguments)
    wanted = OPS.distill_loss(*arguments, True)
    assert all(torch.equal(a, b) for a, b in zip((loss, means, room[1:3]), wanted, strict=True))
    assert room[0].isnan().all() and room[3].isnan().all()
    for wrong in (room[:1], room[:2, :, :69], room[:2].double(), room[:2].mT.contiguous().mT):
        with pytest.raises(RuntimeError, match="dstudent: expected a contiguous tensor"):
            OPS.distill_loss_into_(wrong, *arguments)


# packed rows in blocks that threads cut at other places; long rows; rows of the general path
@pytest.mark.parametrize("K, N, C", [(2, 4100, 4), (2, 37, 5000), (5, 67, 3000)])
def test_bits_do_not_depend_on_threads_runs_or_neighbours(K, N, C):
    student, teacher, label = logits(K, N, C), logits(N, C, seed=1), labels(N, C)
    row_weight = (torch.arange(N) % 7 != 0).float()

    def run():
        return OPS.distill_loss(student, teacher, label, torch.ones(3), row_weight, torch.ones(2), 2.0, 0, True)

    before = run()
    for count in (1, 3, 2):
        with threads(count):
            assert all(torch.equal(a, b) for a, b in zip(before, run(), strict=True))
    part = slice(1, 3)
    terms = OPS.distill_terms(student, teacher, label, 2.0, 0)[0]
    alone = OPS.distill_terms(student[:, part].clone(), teacher[part].clone(), label[part], 2.0, 0)[0]
    assert torch.equal(terms[:, :, part], alone)


@pytest.mark.parametrize("C", [8, 100])
def test_strides_are_read_where_they_lie(C):
    storage, label = logits(40, 3, C + 5), labels(40, C).repeat_interleave(2)[::2]
    student = storage[::2, :, 2 : C + 2].transpose(0, 1)  # (3,20,C)
    check(student, logits(20, 2 * C)[:, ::2], label[:20])  # a teacher whose classes are strided is copied
    check(student[:1].expand(2, 20, C), logits(1, C).expand(20, C), None)


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
    terms = OPS.distill_terms(student, teacher, label, 1.0, 0)[0]
    same, truth = (reference.distill_terms(s, t, label) for s, t in ((student, teacher), wide(student, teacher)))
    assert_no_worse(terms, same, truth, atol=2e-6)


@pytest.mark.parametrize("C", [5, 100])
@pytest.mark.parametrize("divergence", range(4))
def test_nan_does_not_leak_from_a_masked_row(C, divergence):
    student, teacher, label = logits(2, 6, C), logits(6, C, seed=1), labels(6, C)
    label[2] = -100
    row_weight = torch.tensor([1.0, 0.5, 0.0, 1.0, 2.0, 1.0])
    clean = OPS.distill_loss(student, teacher, label, torch.ones(3), row_weight, None, 1.0, divergence, True)
    student[:, 2] = torch.nan
    teacher[2] = torch.nan
    got = OPS.distill_loss(student, teacher, label, torch.ones(3), row_weight, None, 1.0, divergence, True)
    assert all(torch.equal(a, b) for a, b in zip(got, clean, strict=True))
    assert torch.equal(got[2][:, 2], torch.zeros(2, C))
    upstream = torch.ones(3, 2, 6)
    upstream[:, :, 2] = 0
    stats = OPS.distill_terms(student, teacher, label, 1.0, divergence)[1]
    dstudent = OPS.distill_terms_backward(upstream, student, teacher, label, stats, 1.0, divergence)
    assert dstudent.isfinite().all() and torch.equal(dstudent[:, 2], torch.zeros(2, C))


def test_stats_of_either_backend_serve_the_other():
    student, teacher, label = logits(3, 7, 50), logits(7, 50, seed=1), torch.arange(7)
    for divergence in range(3):
        terms, stats = OPS.distill_terms(student, teacher, label, 2.0, divergence)
        expected = reference.row_stats(student, teacher, 2.0, divergence)
        expected[-1, :, 2] = 0  # nobody asks for the teacher's softmax at temperature 1
        torch.testing.assert_close(stats, expected, atol=2e-6, rtol=2e-6)
        upstream = torch.ones_like(terms)
        got = OPS.distill_terms_backward(upstream, student, teacher, label, expected, 2.0, divergence)
        torch.testing.assert_close(got, reference.row_gradient(upstream, student, teacher, label, 2.0, divergence))


def test_every_output_element_is_written():
    """The allocator hands out what was just freed: NaN throughout."""
    for K, N, C in [(2, 33, 4), (2, 5, 3000), (5, 4, 50)]:
        student, teacher, label = logits(K, N, C), logits(N, C, seed=1), torch.full((N,), -100)
        for others in ((teacher, None), (None, None), (teacher, label)):
            torch.full((K, N, C), torch.nan)
            row_weight = torch.zeros(N)
            got = OPS.distill_loss(student, *others, torch.ones(3), row_weight, None, 1.0, 0, True)
            assert all(x.isfinite().all() for x in got)
            terms, stats = OPS.distill_terms(student, *others, 1.0, 0)
            assert terms.isfinite().all() and stats.isfinite().all()


@pytest.mark.parametrize("bad", [-1, 7, -101])
def test_a_label_outside_raises(bad):
    label = torch.tensor([0, bad, 2])
    with pytest.raises((RuntimeError, ValueError), match=rf"label\[1\] is {bad}.*< 7"):
        OPS.distill_terms(logits(2, 3, 7), None, label, 1.0, 0)


def test_no_rows():
    loss, means, dstudent = OPS.distill_loss(logits(2, 0, 5), None, None, torch.ones(3), None, None, 1.0, 0, True)
    assert loss == 0 and torch.equal(means, torch.zeros(3, 2)) and dstudent.shape == (2, 0, 5)


@pytest.mark.parametrize("dtype", TYPES)
def test_scale(dtype):
    gradient = logits(3, 5, 37, dtype=dtype)
    expected = gradient * torch.tensor(0.3)
    OPS.distill_scale_(gradient, torch.tensor(0.3))
    torch.testing.assert_close(gradient, expected)
