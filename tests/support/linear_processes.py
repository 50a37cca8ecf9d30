"""distill_linear_loss under DistributedDataParallel: a function of its process, for tests/ops/test_linear_loss.py."""

from __future__ import annotations

import torch
from torch import Tensor

from nanonet import distill_linear_loss
from nanonet.processes import Processes


class Model(torch.nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, hidden, teacher, teacher_weight, label, totals) -> Tensor:
        given = dict(bias=self.bias, denominators=totals)
        return distill_linear_loss(hidden, self.weight, teacher, teacher_weight, label, **given)[0]


def gradients_of_half(
    processes: Processes, hidden: Tensor, weight: Tensor, bias: Tensor, teacher, teacher_weight, label
) -> list[Tensor]:
    """Gradients of weight and bias, averaged over the processes, of which each has its rows."""
    size = len(hidden) // processes.count
    rows = slice(size * processes.index, size * (processes.index + 1))
    totals = torch.tensor([(label != -100).sum(), len(hidden)], dtype=torch.float32) / processes.count
    model = torch.nn.parallel.DistributedDataParallel(Model(weight, bias))
    model(hidden[rows], teacher[rows], teacher_weight, label[rows], totals).backward()
    return [model.module.weight.grad, model.module.bias.grad]
