"""Size and speed of a model on this machine, by a measurement of a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nanonet.data.batches import Encoded, collate

ROWS = 64
BATCH_ROWS = 32
LONGEST = 2.0  # a batch that would take longer is not run [s]


def megabytes(*tensors: Tensor) -> float:
    """Size of the tensors as safetensors hold them, without the header [10^6 bytes]."""
    return round(sum(t.numel() * t.element_size() for t in tensors) / 1e6, 6)


@torch.inference_mode()
def measure_speed(
    forward: Callable[[Tensor, Tensor], Tensor], rows: Encoded, pad_id: int, device: torch.device, seconds: float
) -> dict[str, float | None]:
    """rows_per_s in batches of BATCH_ROWS and texts_per_s one at a time, of up to ROWS tokenised rows; tokenisation is
    not counted.

    forward: of input_ids and attention_mask (B,L). seconds: each of the two ends after about so long.
    None where there are no rows, and for batches of more than LONGEST.
    """
    if not len(rows):
        return {"rows_per_s": None, "texts_per_s": None}

    def rate(batch_rows: int) -> float:
        """Rows a second, of consecutive batches; the first is run once more before."""
        batches = [range(i, min(i + batch_rows, len(rows), ROWS)) for i in range(0, min(len(rows), ROWS), batch_rows)]
        run(batches[0])
        began, done = time.perf_counter(), 0
        for batch in batches:
            run(batch)
            done += len(batch)
            if time.perf_counter() - began > seconds:
                break
        return round(done / (time.perf_counter() - began), 1)

    def run(batch: range) -> None:
        ids, mask = collate(rows, batch, pad_id)
        forward(ids.to(device), mask.to(device)).cpu()  # waits for an accelerator

    texts_per_s = rate(1)
    return {"rows_per_s": rate(BATCH_ROWS) if BATCH_ROWS / texts_per_s < LONGEST else None, "texts_per_s": texts_per_s}


def parameters_and_buffers(model: nn.Module) -> list[Tensor]:
    """What a saved model holds: each tensor once, though it may have several names."""
    return list({id(t): t for t in model.state_dict(keep_vars=True).values()}.values())
