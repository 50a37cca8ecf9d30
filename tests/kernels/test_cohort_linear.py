"""The Triton kernels of the cohort's linear layer against the reference in float64.

In float32 and float16 where they are interpreted: the interpreter's dot of bfloat16 returns garbage.
"""

import itertools

import pytest
import torch
from support.grids import sample

from nanonet import reference
from nanonet.backends import triton as backend
from nanonet.kernels import cohort_linear, low_rank, tiles

DTYPES = {torch.float32: 1e-5, torch.float16: 4e-3} | ({torch.bfloat16: 4e-2} if torch.cuda.is_available() else {})
NAMES = "dx", "dweight", "dbias", "dlora_a", "dlora_b"


def draw(device, K=3, M=5, D=6, F=4, R=2, shared_x=False, shared_w=True, bias=True, lora=True, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=g).to(device, dtype)  # noqa: E731
    return [
        randn(M, D) if shared_x else randn(K, M, D),
        randn(F, D) if shared_w else randn(K, F, D),
        randn(K, F) if bias else None,
        *((randn(K, R, D), randn(K, F, R), randn(K)) if lora else (None, None, None)),
    ]


def assert_no_worse(name, got, plain, truth, atol):
    assert got.shape == truth.shape and got.dtype == plain.dtype and got.isfinite().all(), name
    if got.numel():
        own, scale = (plain.double() - truth).abs().max(), 1 + truth.abs().max()
        assert (got.double() - truth).abs().max() <= 2 * own + atol * scale, name


def check(arguments, dropout=0.0, needs=(True,) * 5):
    """Forward and backward, where every buffer starts as NaN; twice, to the bit."""
    x, weight, bias, a, b, scale = arguments
    atol, device = DTYPES[x.dtype], x.device
    seed = torch.tensor(123456789012, device=device)
    wide = [None if t is None else t.double() for t in arguments]
    ours = cohort_linear.cohort_linear_fwd(*arguments, seed, dropout)
    plain, wides = reference.cohort_linear(*arguments, seed, dropout), reference.cohort_linear(*wide, seed, dropout)
    for values in zip(("y", "low"), ours, plain, wides, strict=True):
        assert_no_worse(*values, atol)
    truth = wides[0]
    dy = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).to(device, x.dtype)
    lora = a is not None
    rest = seed, dropout, x.dim() == 2, [n and (lora or i < 3) for i, n in enumerate(needs)]
    got = cohort_linear.cohort_linear_bwd(dy, x, ours[1], weight, a, b, scale, *rest)
    plain = reference.cohort_linear_backward(dy, x, plain[1], weight, a, b, scale, *rest)
    truth = reference.cohort_linear_backward(dy.double(), wide[0], wides[1], wide[1], *wide[3:], *rest)
    for values in zip(NAMES, got, plain, truth, strict=True):
        assert_no_worse(*values, atol)
    again = cohort_linear.cohort_linear_fwd(*arguments, seed, dropout)
    again += cohort_linear.cohort_linear_bwd(dy, x, ours[1], weight, a, b, scale, *rest)
    assert all(torch.equal(one, two) for one, two in zip(ours + got, again, strict=True))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What the launchers allocate holds NaN and lies between sentinels, which no kernel may touch."""
    buffers, empty, plain = [], torch.empty, torch.Tensor.new_empty

    def allocate(shape, dtype, device):
        size = torch.Size(shape).numel()
        buffer = torch.full((size + 128,), 1234.0, dtype=dtype, device=device)
        buffer[64 : size + 64] = torch.nan
        buffers.append(buffer)
        return buffer[64 : size + 64].view(shape)

    def new_empty(x, *shape, **options):
        if options:  # the interpreter's own
            return plain(x, *shape, **options)
        return allocate(shape[0] if isinstance(shape[0], tuple) else shape, x.dtype, x.device)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    monkeypatch.setattr(
        low_rank.torch, "empty", lambda *shape, **o: allocate(shape, **o) if len(o) == 2 else empty(*shape, **o)
    )
    yield
    for buffer in buffers:
        assert buffer[:64].eq(1234).all() and buffer[-64:].eq(1234).all()


READINGS = ["pointers", "descriptors", "persistent"]


# how x and W are read: as on an sm_80, as on an sm_90, and by two programs of many tiles each
@pytest.fixture(params=READINGS)
def reading(request, monkeypatch):
    if torch.cuda.is_available() and request.param == "persistent" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("of sm_90 only")
    architecture = 80 if request.param == "pointers" else 90
    monkeypatch.setattr(tiles, "architecture", lambda device: architecture)
    if request.param == "persistent":
        monkeypatch.setitem(tiles.TILES, "descriptors, sm_90", ((0, tiles.tile(64, 32, 32, 4, 3, True)),))
        monkeypatch.setattr(cohort_linear, "multiprocessors", lambda device: 2)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("shared_x,shared_w,lora", list(itertools.product([False, True], repeat=3)))
def test_values_and_gradients(shared_x, shared_w, lora, dtype, device):
    check(draw(device, shared_x=shared_x, shared_w=shared_w, lora=lora, dtype=dtype))


# K=1 is a plain layer, R=1 the smallest adapter, 70 more than a block of ranks, 272 of columns, 65 and 130 ragged
SHAPES = [
    (1, 5, 6, 4, 2),
    (2, 1, 1, 1, 1),
    (2, 65, 33, 17, 9),
    (2, 130, 70, 65, 70),
    (2, 33, 48, 32, 16),
    (1, 70, 24, 272, 3),
]


@pytest.mark.parametrize("K,M,D,F,R,dtype", sample([(*shape, dtype) for dtype in DTYPES for shape in SHAPES], one_in=2))
def test_shapes(K, M, D, F, R, dtype, device):
    check(draw(device, K, M, D, F, R, shared_w=K == 1, dtype=dtype))


def surrounded(t):
    """t in the middle of a buffer of NaN, its rows still at 16 bytes."""
    buffer = t.new_full((*t.shape[:-2], t.shape[-2] + 2, t.shape[-1] + 16), torch.nan)
    buffer[..., 1:-1, 8:-8] = t
    return buffer[..., 1:-1, 8:-8]


# Every way to share x and W under every reading; dropout takes turns. 80 and 208 are no multiples of a block, 140 rows
# are more than one
@pytest.mark.parametrize(
    "shared_x,shared_w,reading,dropout",
    [(i // 2 == 1, i % 2 == 1, reading, 0.25 * ((i + j) % 2)) for i in range(4) for j, reading in enumerate(READINGS)],
    indirect=["reading"],
)
def test_nothing_beside_x_and_w_is_read(shared_x, shared_w, dropout, reading, device):
    x, weight, *others = draw(device, 2, 140, 80, 208, 9, shared_x=shared_x, shared_w=shared_w, dtype=torch.float16)
    check([surrounded(x), surrounded(weight), *others], dropout)


def test_what_tma_can_read(monkeypatch, device):
    monkeypatch.setattr(tiles, "architecture", lambda device: 90)
    x, weight = torch.zeros(3, 5, 48, device=device).half(), torch.zeros(4, 48, device=device).half()
    assert tiles.mapping(x, weight) == tiles.mapping(x[0], weight.expand(3, -1, -1)) == "FD"
    assert tiles.mapping(x, torch.zeros(48, 8, device=device).half().mT) == "DF"
    # other numbers, rows that do not begin at 16 bytes, the same row again, columns that lie apart
    beside = torch.zeros(5, 56, device=device).half()
    for refused in (
        x.float(),
        beside[:, 4:-4],
        torch.zeros(5, 49, device=device).half()[:, 1:],
        x[0, :1].expand(5, -1),
    ):
        assert tiles.mapping(refused, weight) is None
    assert tiles.mapping(x.mT.contiguous().mT, weight) is None
    for other in (80, 120):
        monkeypatch.setattr(tiles, "architecture", lambda device, other=other: other)
        assert tiles.mapping(x, weight) is None


def test_the_table_of_tiles():
    for kind, rows in tiles.TILES.items():
        assert rows[-1][0] == 0, f"{kind}: a small layer finds nothing"
        assert kind == "descriptors, sm_90" or not any(blocks["PERSISTENT"] for _, blocks in rows), kind


@pytest.mark.parametrize("shared_x,shared_w", list(itertools.product([False, True], repeat=2)))
def test_dropout_is_recomputed_in_the_backward(shared_x, shared_w, device):
    check(draw(device, M=40, shared_x=shared_x, shared_w=shared_w), dropout=0.25)


@pytest.mark.parametrize("dropout", [0.1, 0.25, 0.75])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_dropout_is_the_reference_to_the_bit(dropout, dtype, device):
    # W is 0, A and B are the identity and x is 1: y is the scale of each element; in the backward so is dx
    K, M, D = 2, 70, 33
    ones, eye = (
        torch.ones(K, M, D, device=device, dtype=dtype),
        torch.eye(D, device=device, dtype=dtype).expand(K, D, D),
    )
    zero = torch.zeros(D, D, device=device, dtype=dtype)
    for number in (0, 7, -1, 1 << 40 | 5):
        seed = torch.tensor(number, device=device)
        scale = reference.dropout_scale(seed, K, M, D, dropout).to(dtype)
        assert torch.equal(cohort_linear.cohort_linear_fwd(ones, zero, None, eye, eye, None, seed, dropout)[0], scale)
        dx = cohort_linear.cohort_linear_bwd(
            ones, None, None, zero, eye, eye, None, seed, dropout, False, [True, False, False, False, False]
        )[0]
        assert torch.equal(dx, scale)


@pytest.mark.parametrize("absent", range(5))
def test_only_what_is_needed_is_computed(absent, device):
    check(draw(device), needs=tuple(i != absent for i in range(5)))
    check(draw(device), needs=tuple(i == absent for i in range(5)))


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_layouts(dtype, reading, device):
    x, weight, bias, a, b, scale = draw(device, D=16, F=24, shared_w=False, dtype=dtype)
    check([x.mT.contiguous().mT, weight.mT.contiguous().mT, bias, a.mT.contiguous().mT, b.mT.contiguous().mT, scale])
    check([x[:1].expand(3, -1, -1), weight, bias.T.contiguous().T, a, b, None])
    check([x, weight, bias, a, b, scale[:1].expand(3)])


def test_the_backend_leaves_float64_and_empty_batches_to_the_reference(device, monkeypatch):
    monkeypatch.undo()
    ops = backend.implementations()
    for arguments in (draw(device, M=0), draw(device, dtype=torch.float64), draw(device)):
        y, low = ops["cohort_linear"](*arguments, None, 0.0)
        torch.testing.assert_close((y, low), reference.cohort_linear(*arguments, None, 0.0), rtol=1e-4, atol=1e-5)
        x, weight, _, *lora = arguments
        got = ops["cohort_linear_backward"](y, x, low, weight, *lora, None, 0.0, False, [True] * 5)
        expected = reference.cohort_linear_backward(y, x, low, weight, *lora, None, 0.0, False, [True] * 5)
        for one, two in zip(got, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
            assert one.is_contiguous()
