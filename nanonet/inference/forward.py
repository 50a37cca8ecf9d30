"""Run a model over all rows of a table, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nanonet.data.batches import Encoded, collate, length_buckets
from nanonet.errors import InputError
from nanonet.models.pairs import model_inputs
from nanonet.processes import ALONE, Processes

BATCH_ROWS = 64


@torch.inference_mode()
def run(
    forward: Callable[[Tensor, Tensor], Tensor],
    encoded: Encoded,
    pad_id: int,
    device: torch.device | str = "cpu",
    rows_per_batch: int = BATCH_ROWS,
    done: Callable[[int], Any] = lambda rows: None,
    processes: Processes = ALONE,
) -> Tensor:
    """forward(input_ids, attention_mask) of every row, in row order: (..., N, C) float32 on the CPU.

    `done` is told the number of rows after each batch. Each of the `processes`, all of which call this, runs a part of
    the batches, and has the result of all.
    """
    outputs, order = [], []
    batches = length_buckets(encoded.lengths, rows_per_batch)
    for first in range(0, len(batches), processes.count):
        together = batches[first : first + processes.count]  # a batch for each process
        for rows in processes.part(together):
            ids, mask = collate(encoded, rows, pad_id)
            outputs.append(forward(ids.to(device), mask.to(device)).float().cpu())
        done(sum(map(len, together)))
    for index in range(processes.count):
        order += [row for rows in batches[index :: processes.count] for row in rows]
    parts = processes.gather(torch.cat(outputs, -2) if outputs else torch.empty(0))
    result = torch.cat([part for part in parts if part.dim() > 1], -2)
    return result[..., torch.tensor(order).argsort(), :]


def logits_of(model: PreTrainedModel) -> Callable[[Tensor, Tensor], Tensor]:
    """The forward(input_ids, attention_mask) -> logits of a Hugging Face sequence classifier, as `run` takes it."""
    return lambda ids, mask: model(**model_inputs(model.config, ids, mask)).logits


def check_batch_rows(batch_rows: int) -> None:
    if batch_rows < 1:
        raise InputError(f"--batch-rows {batch_rows}: give 1 or more")
