"""bfloat16_product_: by the CPU's tile unit where it has one, else by the reference; against float64."""

import os
import subprocess
import sys

import pytest
import torch

from nanonet import backends
from nanonet.backends import cpp
from nanonet.device import threads

product = torch.ops.nanonet.bfloat16_product_


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


# one element; less and more than a tile of 16 and a block of 32 in each dimension; whole blocks
@pytest.mark.parametrize("R,V,D", [(1, 1, 1), (3, 5, 7), (32, 64, 96), (33, 70, 40), (17, 1000, 513), (70, 31, 33)])
def test_is_the_product_in_float32_and_writes_nothing_else(R, V, D):
    x, weight = draw(R, D + 2)[:, 1 : D + 1], draw(V, D + 3, seed=1)[:, :D]
    room = torch.full((R + 2, V + 3), float("nan"))
    product(room[1 : R + 1, 2 : V + 2], x, weight)
    exact = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    assert ((room[1 : R + 1, 2 : V + 2].double() - exact).abs() <= 1e-6 * size + 1e-12).all()
    assert room.isnan().sum() == room.numel() - R * V


def test_infinities_nan_and_no_rows():
    x, weight = draw(20, 40), draw(50, 40, seed=1)
    x[3, 7], x[4, 8], weight[9, 2] = torch.inf, torch.nan, -torch.inf
    out = torch.empty(20, 50)
    product(out, x, weight)
    exact = x.double() @ weight.double().T
    assert torch.equal(out.isnan(), exact.isnan()) and torch.equal(out.isinf(), exact.isinf())
    product(torch.empty(0, 50), x[:0], weight)


def test_bits_do_not_depend_on_threads():
    x, weight, results = draw(40, 64), draw(3000, 64, seed=1), []
    for count in (1, 3):
        with threads(count):
            results.append(torch.empty(40, 3000))
            product(results[-1], x, weight)
    assert torch.equal(*results)


@pytest.mark.skipif(not cpp.build_info().get("amx"), reason="this CPU has no tile unit, or the module was not built")
def test_the_tile_unit_serves_unless_another_instruction_set_is_asked_for():
    assert backends.registered("bfloat16_product_", "CPU")
    for wrong in ((3, 5, torch.float64), (2, 5, torch.float32), (3, 4, torch.float32)):
        with pytest.raises(ValueError, match="logits, x, weight: expected"):
            product(torch.empty(*wrong[:2], dtype=wrong[2]), draw(3, 8), draw(5, 8))
    program = "import nanonet; from nanonet import backends; print(backends.registered('bfloat16_product_', 'CPU'))"
    for isa, served in (("avx2", "False"), ("avx512", "True")):
        environment = os.environ | {"NANONET_CPU_ISA": isa}
        run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert run.stdout.strip() == served, run.stderr[-1000:]
