"""The cohort on a GPU: its linear layer through the dispatcher, and runs of `nanonet train`."""

from pathlib import Path

import pytest
import torch

from nanonet import backends, cohort_linear
from nanonet.backends import triton

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
ATOL = {torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
NAMES = ("x", "weight", "bias", "lora_a", "lora_b")


def draw(K, M, D, F, R, shared, dtype):
    g = torch.Generator().manual_seed(0)
    shapes = {"x": (K, M, D), "weight": (F, D) if shared else (K, F, D), "bias": (K, F)}
    shapes |= {"lora_a": (K, R, D), "lora_b": (K, F, R), "scale": (K,)}
    scale = {"x": 1.0, "bias": 1.0, "scale": 1.0}
    values = {n: scale.get(n, D**-0.5) * torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}
    return {name: value.to(dtype).cuda() for name, value in values.items()}


def run(arguments, dy):
    leaves = {name: value.detach().clone().requires_grad_(name in NAMES) for name, value in arguments.items()}
    y = cohort_linear(**leaves)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *(leaves[name].grad for name in NAMES)]


def separate(x, weight, bias, lora_a, lora_b, scale):
    """K plain layers: what the op is held against, in float64 and in the dtype itself."""
    y = torch.einsum("kmd,kfd->kmf", x, weight.expand(len(x), *weight.shape[-2:])) + bias[:, None]
    return y + scale[:, None, None] * (x @ lora_a.mT @ lora_b.mT)


# by our kernels, which larger layers have, and by torch's own; in one tile a student, and in many of the largest
@pytest.mark.parametrize("host_bound", [0, triton.HOST_BOUND])
@pytest.mark.parametrize("M,D,F,R", [(70, 96, 48, 8), (2100, 200, 1200, 16), (2100, 96, 1200, 64)])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", ATOL)
def test_the_linear_layer_and_its_gradients(dtype, shared, M, D, F, R, host_bound, monkeypatch):
    monkeypatch.setattr(triton, "HOST_BOUND", host_bound)
    arguments = draw(3, M, D, F, R, shared, dtype)
    dy = torch.randn(3, M, F, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype).cuda()
    leaves = [value.double().requires_grad_() for value in arguments.values()]
    y = separate(*leaves)
    wanted = [y.detach(), *torch.autograd.grad(y, leaves[:5], dy.double())]
    got, again = run(arguments, dy), run(arguments, dy)
    for name, value, expected, second in zip(("y", *NAMES), got, wanted, again, strict=True):
        assert value.dtype == dtype
        scale = expected.abs().max().clamp(min=1)
        assert (value.double() - expected).abs().max() <= ATOL[dtype] * scale, name
        assert torch.equal(value, second), f"{name}: a second run gives other bits"


def test_under_autocast_it_casts_as_a_linear_layer_does():
    arguments = draw(2, 16, 32, 32, 4, True, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        y = cohort_linear(**arguments)
    assert y.dtype == torch.bfloat16
    exact = separate(*(value.double() for value in arguments.values()))
    assert (y.double() - exact).abs().max() <= 6e-2 * exact.abs().max()


def test_its_dropout_is_the_same_on_every_device():
    arguments = draw(2, 16, 32, 32, 4, True, torch.float32)
    seed = torch.tensor(11)
    on_gpu = cohort_linear(**arguments, dropout=0.5, seed=seed.cuda())
    on_cpu = cohort_linear(**{name: value.cpu() for name, value in arguments.items()}, dropout=0.5, seed=seed)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)
    assert not torch.equal(on_gpu, cohort_linear(**arguments))


def test_served_by_a_kernel():
    assert backends.served_by("cohort_linear", "CUDA") == "kernel", backends.MISSING


def test_packed_rows_give_the_same_logits_and_gradients(tiny_encoder: Path):
    from nanonet.cohort.stack import build_cohort
    from nanonet.models.load import load_encoder

    cohort = build_cohort(load_encoder(str(tiny_encoder)), [[0], [1]], ["a", "b"], "bias").cuda()
    ids = torch.randint(5, 20, (6, 11), generator=torch.Generator().manual_seed(0)).cuda()
    mask = (torch.arange(11) < torch.tensor([11, 9, 11, 4, 3, 7])[:, None]).long().cuda()
    found = []
    for cohort.packing in ((), ("cuda",)):
        cohort.zero_grad()
        logits = cohort(ids, mask).logits
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad for p in cohort.parameters() if p.requires_grad)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--tuning bias",
        "--tuning lora --lora-dropout 0.1",
        "--teacher-mode online",
        "--teacher-mode online --tuning head",
        "--student cnn --embedding-width 8",
        "--views cutoff,adversarial --gradient-checkpointing",
        "--precision bfloat16 --relation-weight 1",
        "--precision float16",
    ],
)
def test_a_run_trains_there(flags: str, tiny_encoder: Path, tiny_data: Path, tmp_path: Path):
    from nanonet.cli.main import main
    from nanonet.inference.classifier import load_classifier

    given = ["--data", str(tiny_data), "--teacher", str(tiny_encoder), "--output", str(tmp_path / "run")]
    more = ["--steps", "12", "--max-tokens", "32", *flags.split()]
    assert main(["train", *given, *([] if "online" in flags else ["--teacher-steps", "4"]), *more]) == 0
    assert len(load_classifier(tmp_path / "run" / "best").classes) == 3
