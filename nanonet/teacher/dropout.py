"""Dropout of a batch that several processes share: the masks are those of one process that runs all of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BERNOULLI = torch.ops.aten.bernoulli_.float  # what dropout, attention's too, draws its masks by on a CPU


class WholeBatchDropout(TorchDispatchMode):
    """Within, a forward of some rows of a batch draws the dropout masks of all rows, and takes those of its own.

    Random numbers must have been seeded alike in all processes. A mask is (rows,...), or (1,tokens,*) where rows are
    packed; of any other shape it is drawn as it is.
    """

    def __init__(self, lengths: Sequence[int], own: Sequence[int]) -> None:
        """lengths: tokens of each row of the batch; own: the rows that run, in ascending order"""
        super().__init__()
        row_of_token = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        self.rows, self.own_rows = len(lengths), torch.tensor(own)
        self.tokens, self.own_tokens = len(row_of_token), torch.isin(row_of_token, self.own_rows).nonzero()[:, 0]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not BERNOULLI:
            return func(*args, **(kwargs or {}))
        mask: Tensor = args[0]
        if mask.shape[:2] == (1, len(self.own_tokens)):
            whole = mask.new_empty(1, self.tokens, *mask.shape[2:])
            return mask.copy_(func(whole, *args[1:])[:, self.own_tokens])
        if len(mask) == len(self.own_rows):
            whole = mask.new_empty(self.rows, *mask.shape[1:])
            return mask.copy_(func(whole, *args[1:])[self.own_rows])
        return func(*args, **(kwargs or {}))
