"""The Triton kernels of the loss against the reference in float64."""

import pytest
import torch
from support import distill as support
from support.distill import BETAS, CASES, assert_no_worse, codes_of, wide
from support.grids import sample

from nanonet import reference
from nanonet.backends import triton as backend
from nanonet.kernels import distill, launch
from nanonet.reference import DEFAULT_BETA, DIVERGENCES

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# the interpreter truncates to bfloat16
ATOL = support.ATOL if torch.cuda.is_available() else support.ATOL | {torch.bfloat16: 4e-3}
REGIMES = ["rows", "tiles"]
PLAIN = codes_of("kl", None)


@pytest.fixture(params=REGIMES)
def regime(request, monkeypatch):
    """Every row in registers, or every row in tiles."""
    set_regime(request.param, monkeypatch)
    return request.param


def set_regime(name, monkeypatch):
    monkeypatch.setattr(distill, "ROWS_LIMIT", 1 << 30 if name == "rows" else 0)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch, device):
    """What the launchers allocate holds NaN and lies between sentinels, which no kernel may touch."""
    buffers, empty = [], torch.empty

    def allocate(*shape, dtype, device):
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, torch.Size)) else shape
        size, value = torch.Size(shape).numel(), 12345.0 if dtype.is_floating_point else 12345
        buffer = torch.full((size + 128,), value, dtype=dtype, device=device)
        buffer[64 : size + 64] = torch.nan if dtype.is_floating_point else -1
        buffers.append((buffer, value))
        return buffer[64 : size + 64].view(shape)

    def allocate_like(x, memory_format=None):
        return allocate(*x.shape, dtype=x.dtype, device=x.device)

    monkeypatch.setattr(distill.torch, "empty", lambda *s, **o: allocate(*s, **o) if "dtype" in o else empty(*s, **o))
    monkeypatch.setattr(distill.torch, "empty_like", allocate_like)
    yield
    for buffer, value in buffers:
        assert buffer[:64].eq(value).all() and buffer[-64:].eq(value).all()


def draw(K, N, C, dtype, device):
    return [tensor.to(device) for tensor in support.draw(K, N, C, dtype)]


def check(student, teacher, label, temperature=2.0, divergence="kl", beta=None):
    """The terms, the row statistics and the backward of the terms, with an upstream that is 0 in places; the loss."""
    options = codes_of(divergence, beta, temperature)
    (K, N, _), inputs = student.shape, (student, teacher, label)
    terms, stats = distill.distill_terms_fwd(*inputs, *options)
    assert_no_worse(
        terms, reference.distill_terms(*inputs, *options), reference.distill_terms(*wide(*inputs), *options), 4e-6
    )
    assert_no_worse(
        stats,
        reference.row_stats(student, teacher, *options),
        reference.row_stats(*wide(student, teacher), *options),
        4e-6,
    )
    upstream = torch.randn(3, K, N, generator=torch.Generator().manual_seed(1)).to(student.device)
    upstream[:, :, 1::4] = 0
    assert_no_worse(
        distill.distill_terms_bwd(upstream, *inputs, stats, *options),
        reference.row_gradient(upstream, *inputs, *options),
        reference.row_gradient(*wide(upstream, *inputs), *options),
        ATOL[student.dtype],
    )
    check_loss(*inputs, None, None, *options)


def check_loss(student, teacher, label, row_weight, denominators, *options):
    arguments = student, teacher, label, torch.tensor([0.7, 1.3, 0.4], device=student.device), row_weight, denominators
    got = distill.distill_loss_fwd(*arguments, *options, True)
    plain, truth = reference.distill_loss(*arguments, *options), reference.distill_loss(*wide(*arguments), *options)
    for value, p, t, atol in zip(got, plain, truth, (4e-6, 4e-6, ATOL[student.dtype]), strict=True):
        assert_no_worse(value, p, t, atol)


# every divergence and beta in both regimes; the dtypes take turns
@pytest.mark.parametrize(
    "divergence,beta,dtype,regime",
    sample(
        [(*case, DTYPES[(i + j) % 3], regime) for i, case in enumerate(CASES) for j, regime in enumerate(REGIMES)], 5
    ),
    indirect=["regime"],
)
def test_adversarial_rows(divergence, beta, dtype, regime, device):
    student, teacher, label = adversarial(dtype, device)
    if divergence == "mse":  # logits, which may not be infinite
        student, teacher = student.clamp(-5, 5), teacher.clamp(-5, 5)
    check(student, teacher, label, divergence=divergence, beta=beta)


# Every divergence at every shape; its betas and the two regimes take turns. K=1 has no peers; N=0 and 1 are edges, 9 is
# more than the programs; C=1 has no choice, 7 and 33 are ragged
SHAPES = [(1, 3, 7), (2, 1, 4), (2, 0, 4), (3, 2, 33), (2, 3, 1), (2, 9, 16)]


@pytest.mark.parametrize(
    "shape,divergence,beta,regime",
    [
        (shape, name, BETAS[(i + j) % 4] if name in DEFAULT_BETA else None, REGIMES[(i // 4 + i + j) % 2])
        for i, shape in enumerate(SHAPES)
        for j, name in enumerate(DIVERGENCES)
    ],
    indirect=["regime"],
)
def test_shapes(shape, divergence, beta, regime, device):
    check(*draw(*shape, torch.float32, device), divergence=divergence, beta=beta)


# 2050 is more than one tile of 256 lanes, and ragged
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dtypes_and_several_tiles(dtype, divergence, device, monkeypatch):
    set_regime("tiles", monkeypatch)
    beta = None if divergence not in DEFAULT_BETA else BETAS[(DTYPES.index(dtype) + DIVERGENCES[divergence]) % 4]
    check(*draw(2, 2, 2050, dtype, device), divergence=divergence, beta=beta)


# a beta whose 1 - beta is 1, or 0, in float32
@pytest.mark.parametrize("beta", [1e-9, 1 - 1e-9])
@pytest.mark.parametrize("divergence", DEFAULT_BETA)
def test_a_beta_near_its_ends(divergence, beta, device):
    check(*adversarial(torch.float32, device), divergence=divergence, beta=beta)


def test_only_those_that_have_a_beta_read_it(device):
    inputs = draw(2, 4, 9, torch.float32, device)
    for name, code in DIVERGENCES.items():
        one, two = (distill.distill_terms_fwd(*inputs, 1.0, code, beta)[0] for beta in (0.1, 0.9))
        assert torch.equal(one[1], two[1]) == (name not in DEFAULT_BETA), name


@pytest.mark.parametrize("number", [-1, len(DIVERGENCES)])
def test_an_unknown_divergence_is_refused(number, device):
    student, teacher, label = draw(2, 4, 6, torch.float32, device)
    terms, stats = distill.distill_terms_fwd(student, teacher, label, *PLAIN)
    for launch_it in (
        lambda *o: distill.distill_terms_fwd(student, teacher, label, *o),
        lambda *o: distill.distill_terms_bwd(terms, student, teacher, label, stats, *o),
        lambda *o: distill.distill_loss_fwd(
            student, teacher, label, torch.ones(3, device=device), None, None, *o, True
        ),
    ):
        with pytest.raises(ValueError, match=f"divergence: no number {number}"):
            launch_it(1.0, number, 0.5)


@pytest.mark.parametrize("divergence", ["kl", "js", "cross_entropy"])
def test_twice_the_same_to_the_bit_and_without_a_gradient(divergence, regime, device):
    options = torch.ones(3, device=device), None, None, *codes_of(divergence, None, 2.0)
    inputs = draw(2, 4, 33, torch.float32, device)
    one, two = (distill.distill_loss_fwd(*inputs, *options, True) for _ in range(2))
    assert all(map(torch.equal, one, two))
    loss, means, nothing = distill.distill_loss_fwd(*inputs, *options, False)
    # another kernel, which a GPU's compiler may round otherwise
    torch.testing.assert_close((loss, means), one[:2])
    assert nothing.numel() == 0


def test_as_many_students_as_leave_a_lane_one_class(device, monkeypatch):
    if device.type == "cuda":
        pytest.skip("its three kernels take a minute and a half to compile")
    set_regime("tiles", monkeypatch)
    check(*draw(39, 1, 5, torch.float32, device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 3.5])
def test_temperature_and_dtypes_in_registers(dtype, temperature, device):
    check(*draw(3, 6, 20, dtype, device), temperature=temperature)


@pytest.mark.parametrize("parts", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("divergence", ["kl", "js", "mse", "cross_entropy"])
def test_without_teacher_or_label(parts, divergence, regime, device):
    student, teacher, label = draw(2, 5, 9, torch.float32, device)
    check(student, teacher if parts[0] else None, label if parts[1] else None, divergence=divergence)


@pytest.mark.parametrize("per_student", [False, True])
@pytest.mark.parametrize("given", [None, (2,), (2, 3)])
def test_row_weights_and_denominators(per_student, given, regime, device):
    g = torch.Generator().manual_seed(3)
    row_weight = torch.rand(*((3, 6) if per_student else (6,)), generator=g).to(device)
    row_weight[..., 2] = 0
    denominators = None if given is None else (1 + torch.rand(*given, generator=g)).to(device)
    student, teacher, label = draw(3, 6, 9, torch.float32, device)
    check_loss(student, teacher, label, row_weight, denominators, *codes_of("kl", None, 2.0))
    student[:, 2], teacher[2], label[2] = torch.nan, torch.nan, -100  # masked, not multiplied
    w = torch.ones(3, device=device)
    for value in distill.distill_loss_fwd(student, teacher, label, w, row_weight, denominators, *PLAIN, True):
        assert value.isfinite().all()


def test_denominators_of_many_rows_are_the_same(device, monkeypatch):
    student, teacher, label = draw(2, 40, 5, torch.float32, device)
    r, w = torch.rand(2, 40, device=device), torch.ones(3, device=device)
    for row_weight in (None, r, r[0]):
        monkeypatch.setattr(distill, "RECOUNT_LIMIT", 1 << 20)
        once = distill.distill_loss_fwd(student, teacher, label, w, row_weight, None, *PLAIN, True)
        monkeypatch.setattr(distill, "RECOUNT_LIMIT", 0)
        for a, b in zip(
            once, distill.distill_loss_fwd(student, teacher, label, w, row_weight, None, *PLAIN, True), strict=True
        ):
            torch.testing.assert_close(a, b)


def test_a_denominator_of_zero_gives_zero(regime, device):
    student, teacher, label = draw(2, 4, 6, torch.float32, device)
    label[:] = -100
    for r, d in ((torch.zeros(4, device=device), None), (None, torch.zeros(2, device=device))):
        w = torch.ones(3, device=device)
        for value in distill.distill_loss_fwd(student, teacher, label, w, r, d, *PLAIN, True):
            assert not value.any()


def adversarial(dtype, device):
    """Rows of agreement, +-1e4, masked classes, a one-hot teacher, underflow of both, and all classes masked."""
    inf = float("inf")
    student = [
        [1, 1, 1, 1], [1e4, -1e4, 0, 5], [0, -inf, 1, 2], [1, 2, 3, 4], [0, -200, -200, -200], [-inf] * 4,
    ]  # fmt: skip
    teacher = [
        [1, 1, 1, 1], [1e4, -1e4, 0, 5], [1, -inf, 0, 2], [-inf, -inf, 0, -inf], [0, -200, -200, -200], [1, 2, 3, 4],
    ]  # fmt: skip
    one = torch.tensor(student, dtype=dtype, device=device)
    # the third rules out classes that the others do not
    other = torch.stack([one, one + 1e-3, torch.cat([one[:5].flip(0), one[5:]])])
    return other, torch.tensor(teacher, dtype=dtype, device=device), torch.tensor([0, 0, 2, 2, 0, 1], device=device)


def test_a_class_that_some_mask_with_a_large_number_leaves_the_others_as_they_are(regime, device):
    student = draw(5, 8, 5, torch.float32, device)[0]
    student[0, :, 1] = student[1, :4, 1] = -1e9
    truth = reference.distill_terms(student.double(), None, None)[2]
    ours = distill.distill_terms_fwd(student, None, None, *PLAIN)[0][2].double()
    torch.testing.assert_close(ours[2:], truth[2:], rtol=2e-6, atol=2e-6)


def test_students_that_nearly_agree_keep_their_divergence(regime, device):
    # the log-sum-exps are known to 3e-7, the divergence itself is 1e-6
    g = torch.Generator().manual_seed(0)
    student = (torch.randn(1, 8, 100, generator=g) + 1e-3 * torch.randn(4, 8, 100, generator=g)).to(device)
    truth = reference.distill_terms(student.double(), None, None)[2].sum(1)
    ours = distill.distill_terms_fwd(student, None, None, *PLAIN)[0][2].double().sum(1)
    assert ((ours - truth).abs() / truth).max() < 0.03
    for name, beta in (("kl", None), ("reverse_kl", None), ("symmetric_kl", 0.1)):
        pair = student[:1], student[1]
        truth = reference.distill_terms(*wide(*pair), None, *codes_of(name, beta))[1].sum()
        ours = distill.distill_terms_fwd(*pair, None, *codes_of(name, beta))[0][1].double().sum()
        assert (ours - truth).abs() < 0.03 * truth, name


def test_a_label_that_is_no_class_gives_nan_in_its_row_only(regime, device):
    student, teacher, label = draw(2, 4, 6, torch.float32, device)
    label[:] = torch.tensor([1, 6, -1, -100])
    terms, stats = distill.distill_terms_fwd(student, teacher, label, *PLAIN)
    assert terms.isnan().sum(-1).tolist() == [[2, 2], [0, 0], [0, 0]] and terms[0, :, 1:3].isnan().all()
    for upstream, bad in ((torch.ones_like(terms), True), (torch.ones_like(terms) * (terms == terms), False)):
        dstudent = distill.distill_terms_bwd(upstream, student, teacher, label, stats, *PLAIN)
        assert dstudent[:, 1:3].isnan().all() == bad and dstudent[:, ::3].isfinite().all()
    loss, _, dstudent = distill.distill_loss_fwd(
        student, teacher, label, torch.ones(3, device=device), None, None, *PLAIN, True
    )
    assert loss.isnan() and dstudent[:, 1:3].isnan().all() and dstudent[:, ::3].isfinite().all()


@pytest.mark.parametrize("layout", ["swapped", "sliced", "expanded"])
def test_layouts(layout, regime, device):
    student, teacher, label = draw(3, 4, 10, torch.float32, device)
    check(
        {
            "swapped": student.transpose(0, 2).contiguous().transpose(0, 2),
            "sliced": torch.cat([student, student], -1)[..., 3:13],
            "expanded": student[:1].expand(3, 4, 10),
        }[layout],
        torch.cat([teacher, teacher], -1)[..., 3:13] if layout == "sliced" else teacher[:1].expand(4, 10),
        torch.stack([label, label], -1)[:, 0],
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale(dtype, device):
    x = torch.randn(5, 1111, device=device).to(dtype)
    for factor in (1.0, 0.3):
        y = x.clone()
        distill.distill_scale(y, torch.tensor(factor, device=device))
        # the interpreter truncates to bfloat16
        torch.testing.assert_close(y, x * factor, rtol=8e-3 if dtype == torch.bfloat16 else 0, atol=0)
    distill.distill_scale(x[:0], torch.tensor(2.0, device=device))


def test_the_counter_is_left_at_zero(regime, device, monkeypatch):
    count = torch.zeros((), dtype=torch.int32, device=device)
    monkeypatch.setattr(distill, "counter", lambda device: count)
    student, teacher, label = draw(2, 12, 6, torch.float32, device)
    distill.distill_loss_fwd(student, teacher, label, torch.ones(3, device=device), None, None, *PLAIN, True)
    assert count == 0 and launch.counter(device) == 0


def test_the_backend_serves_every_op_and_leaves_float64_to_the_reference(device):
    ops = backend.implementations()
    student, teacher, label = draw(2, 4, 6, torch.float32, device)
    for inputs in ((student, teacher), (student.double(), teacher.double())):
        w = torch.ones(3, dtype=inputs[0].dtype, device=device)
        terms, stats = ops["distill_terms"](*inputs, label, 2.0, 0, 0.5)
        assert terms.dtype == stats.dtype == inputs[0].dtype
        torch.testing.assert_close(terms, reference.distill_terms(*inputs, label, 2.0, 0, 0.5))
        dstudent = ops["distill_terms_backward"](torch.ones_like(terms), *inputs, label, stats, 2.0, 0, 0.5)
        torch.testing.assert_close(
            dstudent, reference.row_gradient(torch.ones_like(terms), *inputs, label, 2.0, 0, 0.5), rtol=1e-4, atol=1e-6
        )
        loss, means, dstudent = ops["distill_loss"](*inputs, label, w, None, None, 2.0, 0, 0.5, True)
        scaled = dstudent.clone()
        ops["distill_scale_"](scaled, torch.tensor(3.0, dtype=w.dtype, device=device))
        torch.testing.assert_close(scaled, 3 * dstudent)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is told where there is no device")
def test_without_a_device_nothing_is_registered():
    assert backend.load() == backend.NO_DEVICE
