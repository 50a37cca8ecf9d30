"""The processes of a run: each does a part of the work, and has the results of all.

They call the same methods in the same order. A run of one process calls nothing of torch.distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """index, count: which one of how many this is. device: where tensors are exchanged"""

    index: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def part(self, work: Sequence[T]) -> Sequence[T]:
        """This process's part of the work: every `count`-th piece."""
        return work[self.index :: self.count]

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes; the others wait for it."""
        made: list[Any] = [make() if self.is_first else None]
        if self.count > 1:
            distributed.broadcast_object_list(made, 0)
        found: T = made[0]
        return found

    def gather_objects(self, part: T) -> list[T]:
        """The small object of each process."""
        parts: list[Any] = [part] * self.count
        if self.count > 1:
            distributed.all_gather_object(parts, part)
        return parts

    def gather(self, part: Tensor) -> list[Tensor]:
        """The tensor of each process, of any shapes but one dtype, on the CPU."""
        if self.count == 1:
            return [part]
        shapes = self.gather_objects(tuple(part.shape))
        parts = [torch.empty(shape, dtype=part.dtype, device=self.device) for shape in shapes]
        parts[self.index].copy_(part)
        for source, tensor in enumerate(parts):
            if tensor.numel():
                distributed.broadcast(tensor, source)
        return [tensor.cpu() for tensor in parts]

    def copy_from(self, source: int, tensors: Iterable[Tensor]) -> None:
        """Write over these tensors what process `source` has in them."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), source)

    def add_up(self, tensor: Tensor) -> None:
        """Write over this tensor the sum over all processes."""
        if self.count > 1:
            distributed.all_reduce(tensor)


ALONE = Processes()
