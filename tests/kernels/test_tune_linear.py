"""The tiles that benchmarks/tune_linear.py times: each gives the product."""

import pytest
import torch

from nanonet.benchmarks import tune, tune_linear
from nanonet.kernels.launch import architecture


# M, D and F are no multiples of a tile, and rows that begin at 16 bytes
@pytest.mark.parametrize("phase", ["forward", "dx"])
@pytest.mark.parametrize("reading,blocks", tune_linear.CANDIDATES, ids=lambda value: str(value)[:11])
def test_every_candidate_gives_the_product(reading, blocks, phase, device):
    if blocks["PERSISTENT"] and architecture(device) != 90:
        pytest.skip("of sm_90 only")
    x, weight, bias, low, b = given = tune_linear.operands((2, 270, 72, 280, 3), phase, torch.float16, str(device))
    y = x.new_full((2, 270, weight.shape[-2]), torch.nan)
    tune_linear.product(given, y, reading, blocks)
    wanted = x.double() @ weight.double().mT + low.double() @ b.double().mT
    wanted = wanted if bias is None else wanted + bias.double()[:, None]
    assert not tune.differs(y, wanted.half())
    assert tune.differs(y * 1.1, wanted.half()) and tune.differs(y * torch.nan, wanted.half())
