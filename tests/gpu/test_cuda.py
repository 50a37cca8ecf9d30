"""Every loss op on a GPU, whoever serves it there, against the reference in float64."""

import importlib

import pytest
import torch
from support import distill
from support.distill import CASES, assert_no_worse, codes_of, wide

import nanonet
from nanonet import backends, reference
from nanonet.backends import cuda
from nanonet.reference import DIVERGENCES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
OPS = torch.ops.nanonet
ATOL = {torch.float32: 4e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def draw(*arguments, dtype=torch.float32):
    return [tensor.cuda() for tensor in distill.draw(*arguments, dtype=dtype)]


def check(student, teacher, label, temperature=1.0, divergence=0, beta=0.5, row_weight=None):
    options = temperature, divergence, beta
    inputs = student, teacher, label
    terms, stats = OPS.distill_terms(*inputs, *options)
    plain, exact = (reference.distill_terms(*some, *options) for some in (inputs, wide(*inputs)))
    assert_no_worse(terms, plain, exact, ATOL[torch.float32])
    upstream = torch.randn(terms.shape, generator=torch.Generator().manual_seed(3)).cuda()
    upstream[:, :, 2::5] = 0
    got = OPS.distill_terms_backward(upstream, *inputs, stats, *options)
    assert got.dtype == student.dtype and got.is_contiguous()
    plain = reference.row_gradient(upstream, *inputs, *options)
    exact = reference.row_gradient(upstream.double(), *wide(*inputs), *options)
    assert_no_worse(got, plain, exact, ATOL[student.dtype])
    weights = torch.tensor([0.7, 1.3, 0.5], device="cuda")
    more = weights, row_weight, None
    got = OPS.distill_loss(*inputs, *more, *options, True)
    plain = reference.distill_loss(*inputs, *more, *options)
    truth = reference.distill_loss(*wide(*inputs), *wide(*more), *options)
    for one, other, exact, dtype in zip(got, plain, truth, (torch.float32, torch.float32, student.dtype), strict=True):
        assert_no_worse(one, other, exact, ATOL[dtype])
    again = OPS.distill_loss(*inputs, *more, *options, True)
    for one, other in zip(got, again, strict=True):
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7)), "a second run gives other bits"
    alone = OPS.distill_loss(*inputs, *more, *options, False)
    torch.testing.assert_close(alone[0], got[0], equal_nan=True)
    assert alone[2].numel() == 0


def test_served_by_kernels():
    assert backends.served_by("distill_loss", "CUDA") == "kernel", backends.MISSING


# 1 class; lanes of a warp; two values of C a lane; a block; ragged; a cluster (on sm_90) or two sweeps
@pytest.mark.parametrize("C", [1, 4, 100, 200, 1000, 30522, 50257])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", ATOL)
def test_against_the_reference(K, C, dtype):
    check(*draw(K, 7, C, dtype=dtype), temperature=2.0)


@pytest.mark.parametrize("C", [100, 30522])
def test_more_students_than_the_compiled_kernels_take(C):
    check(*draw(9, 7, C, dtype=torch.bfloat16), temperature=2.0)


# on sm_90 two and four blocks; ragged, so that a chunk lies across the row's end
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_a_cluster(dtype):
    check(*draw(2, 2, 40003, dtype=dtype))


def test_rows_of_a_cluster_of_which_one_has_a_chunk_more_than_the_next():
    """On an H200 eight rows each: none may be overwritten before every warp is done with it."""
    check(*draw(2, 528, 60003, dtype=torch.bfloat16), temperature=2.5, divergence=DIVERGENCES["js"])


# several rows for every block or cluster: each replaces the one before, also where a class at -inf takes a sweep more;
# whole chunks, and rows that differ in alignment
@pytest.mark.parametrize("kernel,cluster", [("chip", 1), ("cluster", 2), ("cluster", 8), ("cluster", 16), ("sweep", 1)])
@pytest.mark.parametrize("dtype,C", [(torch.bfloat16, 3000), (torch.float32, 2001)])
def test_every_kernel_over_many_rows(kernel, cluster, dtype, C):
    if cuda.load() is not None or (cluster > 1 and torch.cuda.get_device_capability()[0] < 9):
        pytest.skip("no such kernel here")
    student, teacher, label = draw(3, 1200, C, dtype=dtype)
    student[:, 100:500:7, 10] = teacher[100:500:7, 10] = float("-inf")
    label[label == 10] = 11
    module = importlib.import_module("nanonet._C_cuda")
    module.use_kernel(kernel, cluster)
    try:
        check(student, teacher, label, temperature=2.0)
    finally:
        module.use_kernel(None)


# 6 students: what the compiled kernels hand on, but for kl and cross_entropy
@pytest.mark.parametrize("divergence,beta", CASES)
@pytest.mark.parametrize("C", [5, 150, 2051, 60000])
@pytest.mark.parametrize("K", [2, 4, 6])
def test_divergences(divergence, beta, C, K):
    check(*draw(K, 6, C, dtype=torch.bfloat16), *codes_of(divergence, beta, 2.5))


def test_a_number_that_is_no_divergence_raises():
    for divergence in (-1, len(DIVERGENCES)):
        with pytest.raises((ValueError, RuntimeError), match="divergence"):
            OPS.distill_terms(*draw(2, 3, 5), 1.0, divergence, 0.5)


@pytest.mark.parametrize("C", [6, 1000, 131072])
def test_absent_and_masked(C):
    student, teacher, label = draw(3, 9, C)
    check(student, None, label)
    check(student, teacher, None)
    weight = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)).cuda()
    weight[:, 4] = 0
    student[:, 4] = float("nan")
    label[4] = -100
    check(student, teacher, label, row_weight=weight)
    check(student, teacher, label, row_weight=weight[0])
    check(student.bfloat16(), teacher, label, row_weight=weight.bfloat16())


@pytest.mark.parametrize("C", [6, 1000, 131072])
def test_infinite_classes_and_large_logits(C):
    student, teacher, label = draw(4, 6, C)
    student[:, :, 1] = teacher[:, 1] = float("-inf")
    label[label == 1] = 0
    teacher[2, 1:] = float("-inf")
    student[:, 3] *= 3000
    check(student, teacher, label)


@pytest.mark.parametrize("C", [6, 1000, 131072])
@pytest.mark.parametrize("K", [3, 5])
def test_a_class_that_some_mask_with_a_large_number_leaves_the_others_as_they_are(K, C):
    student, _, _ = draw(K, 6, C)
    student[0, :, 1] = -1e9
    truth, ours = (nanonet.distill_terms(s)[2, 1:].double() for s in (student.double(), student))
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


# a view whose rows start off the 16-byte grid, each elsewhere; a transposed one
@pytest.mark.parametrize("dtype", ATOL)
def test_strided(dtype):
    student, teacher, label = draw(2, 5, 1003, dtype=dtype)
    padded = torch.full((2, 5, 1010), float("nan"), dtype=dtype, device="cuda")
    padded[:, :, 3:1006] = student
    check(padded[:, :, 3:1006], teacher, label)
    check(student.transpose(1, 2).contiguous().transpose(1, 2), teacher, label)


def test_rows_four_gib_apart():
    student, teacher, label = draw(1, 2, 1000, dtype=torch.bfloat16)
    apart = torch.empty((1 << 31) + 1000, dtype=torch.bfloat16, device="cuda").as_strided((1, 2, 1000), (0, 1 << 31, 1))
    check(apart.copy_(student), teacher, label)


def test_many_rows_count_their_denominators_first():
    student, teacher, label = draw(2, 20000, 5)
    check(student, teacher, label, row_weight=torch.rand(20000, device="cuda"))


def test_no_rows():
    student, teacher, label = draw(2, 0, 5)
    loss, means, dstudent = OPS.distill_loss(
        student, teacher, label, torch.ones(3, device="cuda"), None, None, 1.0, 0, 0.5, True
    )
    assert loss == 0 and not means.any() and dstudent.shape == (2, 0, 5)


def test_a_label_that_is_no_class_gives_nan():
    for C in (5, 1000, 70000):
        student, teacher, label = draw(2, 4, C)
        label[1] = C
        loss, means, dstudent = OPS.distill_loss(
            student, teacher, label, torch.ones(3, device="cuda"), None, None, 1.0, 0, 0.5, True
        )
        assert loss.isnan() and means[0].isnan().all() and means[1:].isfinite().all()
        assert dstudent[:, 1].isnan().all() and dstudent[:, [0, 2, 3]].isfinite().all()


def test_float64_is_the_reference():
    student, teacher, label = draw(3, 5, 40, dtype=torch.float64)
    leaf = student.requires_grad_()
    loss, _ = nanonet.distill_loss(leaf, teacher, label)
    loss.backward()
    assert loss.dtype == torch.float64 and leaf.grad.isfinite().all()


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("dtype", ATOL)
def test_scaled_where_it_lies(factor, dtype):
    values = torch.randn(3, 5, 1001, device="cuda").to(dtype)
    scaled = values.clone()
    OPS.distill_scale_(scaled, torch.tensor(factor, device="cuda"))
    torch.testing.assert_close(scaled, values * factor)


@pytest.mark.parametrize("C", [4, 100, 1000, 40000])
def test_in_a_cuda_graph(C):
    """Nothing waits for the device: forward and backward of both public ops are captured, and replay on new values."""
    student, teacher, label = draw(2, 16, C, dtype=torch.bfloat16)
    leaf = student.clone().requires_grad_()

    def step():
        leaf.grad = None
        loss, _ = nanonet.distill_loss(leaf, teacher, label, temperature=2.0)
        (loss + nanonet.distill_terms(leaf, teacher, label).sum() * 1e-3).backward()
        return loss, leaf.grad

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, gradient = step()
    with torch.no_grad():
        leaf.copy_(student * 0.5)
    for _ in range(2):
        graph.replay()
        captured = loss.clone(), gradient.clone()
        eager = step()
        assert torch.equal(captured[0], eager[0]) and torch.equal(captured[1], eager[1])


def test_on_the_current_stream():
    """The input is written on a side stream behind a long wait: on any other stream the op would read too early."""
    student, teacher, label = draw(2, 64, 1000)
    expected = OPS.distill_terms(student, teacher, label, 1.0, 0, 0.5)[0]
    late = torch.zeros_like(student)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        late.copy_(student)
        terms = OPS.distill_terms(late, teacher, label, 1.0, 0, 0.5)[0]
        torch.cuda.current_stream().synchronize()
    assert torch.equal(terms, expected)
