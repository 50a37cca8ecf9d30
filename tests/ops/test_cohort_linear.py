"""cohort_linear: whatever backend serves it, against K separate products in float64."""

import itertools

import pytest
import torch
from torch.library import opcheck

from nanonet import cohort_linear, reference

ATOL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}
NAMES = ("x", "weight", "bias", "lora_a", "lora_b")


def draw(K=3, M=5, D=6, F=4, R=2, shared_x=False, shared_w=True, bias=True, lora=True, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    return dict(
        x=randn(M, D) if shared_x else randn(K, M, D),
        weight=randn(F, D) if shared_w else randn(K, F, D),
        bias=randn(K, F) if bias else None,
        lora_a=randn(K, R, D) if lora else None,
        lora_b=randn(K, F, R) if lora else None,
        scale=randn(K) if lora else None,
    )


def separate(x, weight, bias, lora_a, lora_b, scale, mask=None):
    """K plain layers, one after the other."""
    K = (
        max(t.shape[0] for t in (x, weight) if t.dim() == 3)
        if x.dim() == 3 or weight.dim() == 3
        else (bias if bias is not None else lora_a).shape[0]
    )
    out = []
    for k in range(K):
        xk, wk = x[k] if x.dim() == 3 else x, weight[k] if weight.dim() == 3 else weight
        y = torch.nn.functional.linear(xk, wk, None if bias is None else bias[k])
        if lora_a is not None:
            y = y + scale[k] * ((xk if mask is None else xk * mask[k]) @ lora_a[k].T @ lora_b[k].T)
        out.append(y)
    return torch.stack(out)


def run(function, arguments, dy, **options):
    leaves = {n: None if v is None else v.detach().clone().requires_grad_(n in NAMES) for n, v in arguments.items()}
    y = function(**leaves, **options)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *(None if leaves[n] is None else leaves[n].grad for n in NAMES)]


def check(arguments, dtype, mask=None, **options):
    K = next(v.shape[0] for v in arguments.values() if v is not None and v.dim() == 3)
    M, F = arguments["x"].shape[-2], arguments["weight"].shape[-2]
    dy = torch.randn(K, M, F, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wide = {n: None if v is None else v.double() for n, v in arguments.items()}
    truth = run(separate, wide, dy, mask=None if mask is None else mask.double())
    plain = run(separate, arguments, dy, mask=None if mask is None else mask.to(dtype))
    for name, value, expected, torchs in zip(
        ("y", *NAMES), run(cohort_linear, arguments, dy, **options), truth, plain, strict=True
    ):
        if expected is None:
            assert value is None
            continue
        scale = 1 + (expected.abs().max().item() if expected.numel() else 0)
        error = (value.double() - expected).abs().max().item() if expected.numel() else 0
        own = (torchs.double() - expected).abs().max().item() if expected.numel() else 0
        assert value.shape == expected.shape and error <= 2 * own + ATOL[dtype] * scale, name


# every part present and absent; x and W shared and not (one of them must carry K)
@pytest.mark.parametrize("dtype", list(ATOL))
@pytest.mark.parametrize("shared_x,shared_w,bias,lora", list(itertools.product([False, True], repeat=4)))
def test_values_and_gradients(shared_x, shared_w, bias, lora, dtype):
    if shared_x and shared_w and not lora:
        bias = True
    arguments = draw(shared_x=shared_x, shared_w=shared_w, bias=bias, lora=lora, dtype=dtype)
    if shared_x and shared_w and not lora:
        arguments["weight"] = arguments["weight"].expand(3, -1, -1).clone()
    check(arguments, dtype)


# K=1 is a plain layer, M=0 an empty batch, R=1 the smallest adapter, 65 ragged
@pytest.mark.parametrize("K,M,D,F,R", [(1, 5, 6, 4, 2), (2, 0, 6, 4, 2), (2, 1, 1, 1, 1), (4, 65, 33, 17, 9)])
@pytest.mark.parametrize("shared_w", [True, False])
def test_shapes(K, M, D, F, R, shared_w):
    check(draw(K, M, D, F, R, shared_w=shared_w, dtype=torch.float32), torch.float32)


@pytest.mark.parametrize("shared_x", [False, True])
def test_dropout_is_a_function_of_the_seed_and_recomputed_in_the_backward(shared_x):
    arguments, seed = draw(M=40, shared_x=shared_x), torch.tensor(7)
    mask = reference.dropout_scale(seed, 3, 40, 6, 0.25)
    check(arguments, torch.float64, mask=mask, dropout=0.25, seed=seed)
    torch.testing.assert_close(mask.unique(), torch.tensor([0.0, 1 / 0.75]))
    one, again = (cohort_linear(**arguments, dropout=0.25, seed=seed) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, cohort_linear(**arguments, dropout=0.25, seed=seed + 1))
    assert not torch.equal(one, cohort_linear(**arguments, dropout=0.5, seed=seed))
    assert torch.equal(cohort_linear(**arguments, dropout=0.25), cohort_linear(**arguments))  # no seed: off


def test_dropout_mask_is_fair_and_independent():
    masks = torch.stack([reference.dropout_scale(torch.tensor(s), 2, 500, 100, 0.1) > 0 for s in range(8)]).double()
    assert abs(masks.mean() - 0.9) < 2e-3
    flat = masks.flatten(1) - 0.9
    correlation = (flat @ flat.T / flat.shape[1] / 0.09) - torch.eye(8)
    assert correlation.abs().max() < 0.02
    neighbours = (flat[:, 1:] * flat[:, :-1]).mean() / 0.09
    assert abs(neighbours) < 0.01


def test_frozen_parts_get_no_gradient_and_keep_nothing_alive():
    arguments = draw(lora=False)
    x, bias = arguments["x"].requires_grad_(), arguments["bias"].requires_grad_()
    y = cohort_linear(x * 1, arguments["weight"], bias)
    assert y.grad_fn.saved_tensors[0] is y.grad_fn.saved_tensors[1] is None  # x and low serve no gradient here
    y.sum().backward()
    assert arguments["weight"].grad is None and bias.grad.eq(5).all()


# what serves no wanted gradient is not kept: x those of W and A, low that of B
@pytest.mark.parametrize(
    "trained,kept", [("bias", ()), ("lora_b", (1,)), ("lora_a", (0,)), ("weight", (0,)), ("x", ())]
)
def test_only_what_the_backward_reads_is_kept(trained, kept):
    arguments = draw()
    arguments[trained].requires_grad_()
    y = cohort_linear(**arguments)
    assert [i for i, saved in enumerate(y.grad_fn.saved_tensors[:2]) if saved is not None] == list(kept)
    y.sum().backward()
    assert arguments[trained].grad.shape == arguments[trained].shape


def test_low_is_an_output_without_a_gradient():
    arguments = {n: v.requires_grad_(n != "scale") for n, v in draw().items()}
    y, low = torch.ops.nanonet.cohort_linear(*arguments.values(), None, 0.0)
    assert y.requires_grad and not low.requires_grad
    expected = arguments["scale"][:, None, None] * (arguments["x"] @ arguments["lora_a"].mT)
    torch.testing.assert_close(low, expected.detach())
    absent = torch.ops.nanonet.cohort_linear(*draw(lora=False).values(), None, 0.0)[1]
    assert absent.shape == (0,)


def test_no_gradient_of_y_is_none_of_the_arguments():
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.sum()

        @staticmethod
        def backward(ctx, dy):
            return None

    x = draw()["x"].requires_grad_()
    Stop.apply(cohort_linear(**(draw() | dict(x=x)))).backward()
    assert x.grad is None


def test_gradcheck():
    arguments = {n: v.requires_grad_(n != "scale") for n, v in draw().items()}
    seed = torch.tensor(3)
    assert torch.autograd.gradcheck(lambda *a: cohort_linear(*a, dropout=0.3, seed=seed), tuple(arguments.values()))


@pytest.mark.parametrize("shared_x,shared_w", list(itertools.product([False, True], repeat=2)))
def test_opcheck(shared_x, shared_w):
    arguments = [v.requires_grad_(n != "scale") for n, v in draw(shared_x=shared_x, shared_w=shared_w).items()]
    opcheck(torch.ops.nanonet.cohort_linear, (*arguments, torch.tensor(3), 0.2))
    x, weight, bias, a, b, scale = (v.detach() for v in arguments)
    dy, low = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 5, 2, dtype=torch.float64)
    for needs in ([True] * 5, [True, False, True, False, False]):
        opcheck(torch.ops.nanonet.cohort_linear_backward, (dy, x, low, weight, a, b, scale, None, 0.0, shared_x, needs))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend):
    arguments = draw(dtype=torch.float32)
    dy = torch.ones(3, 5, 4)
    eager = run(cohort_linear, arguments, dy)
    compiled = run(torch.compile(cohort_linear, fullgraph=True, backend=backend), arguments, dy)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_casts_as_a_linear_layer_does():
    arguments = draw(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = cohort_linear(**arguments)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), cohort_linear(**arguments), rtol=0.05, atol=0.1)
    x = arguments["x"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        cohort_linear(**arguments).sum().backward()
    assert x.grad.dtype == torch.float32
    wide = draw(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y = cohort_linear(**wide)
    assert torch.equal(y, cohort_linear(**wide))  # float64 is not cast


def test_shapes_alone():
    assert cohort_linear(**{n: v.to("meta") for n, v in draw().items()}).shape == (3, 5, 4)


def test_second_derivatives_raise():
    x = draw()["x"].requires_grad_()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(cohort_linear(**(draw() | dict(x=x))).sum(), x, create_graph=True)


@pytest.mark.parametrize(
    "change,error,message",
    [
        (dict(x=[1.0]), TypeError, "x: expected a floating tensor"),
        (dict(x=torch.ones(3, 5, 6)), TypeError, "weight: expected torch.float32 like x"),
        (dict(x=torch.ones(3, 5, 7).double()), ValueError, "x: expected shape"),
        (dict(x=torch.ones(2, 5, 6).double()), ValueError, "bias: expected shape"),
        (dict(weight=torch.ones(6).double()), ValueError, "weight"),
        (dict(lora_b=None), ValueError, "both or neither"),
        (dict(bias=[1.0]), TypeError, "bias: expected a tensor, got list"),
        (dict(lora_a=[1.0], lora_b=[1.0]), TypeError, "lora_a: expected a tensor, got list"),
        (dict(seed=3), TypeError, "seed: expected a tensor, got int"),
        (dict(lora_b=torch.ones(3, 4, 3).double()), ValueError, "lora_b: expected shape"),
        (dict(scale=torch.ones(2).double()), ValueError, "scale"),
        (dict(scale=torch.ones(3).double().requires_grad_()), ValueError, r"scale.detach\(\)"),
        (dict(dropout=1.0), ValueError, "dropout"),
        (dict(seed=torch.tensor(1.0), dropout=0.1), ValueError, "seed: expected an int64 scalar"),
        (dict(bias=torch.ones(3, 4, device="meta").double()), ValueError, "bias: expected on cpu"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        cohort_linear(**(draw() | change))


@pytest.mark.parametrize("K", [1, 2])
def test_the_output_may_be_changed_in_place(K: int) -> None:
    x, weight = torch.randn(K, 3, 4, requires_grad=True), torch.randn(5, 4)
    y = cohort_linear(x, weight, torch.zeros(K, 5))
    y /= 2
    y.sum().backward()
    torch.testing.assert_close(x.grad, (weight.sum(0) / 2).expand(K, 3, 4))
