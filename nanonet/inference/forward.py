"""Run models over whole tables, batches of like length, and score what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import confusion_matrix, f1_score
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import cached_file

from nanonet.config.train import InputError
from nanonet.data.batches import Encoded, collate, length_buckets

POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}  # sentence-transformers' names before 6


@torch.inference_mode()
def run(
    forward: Callable[[Tensor, Tensor], Tensor],
    encoded: Encoded,
    pad_id: int,
    device: torch.device | str = "cpu",
    rows_per_batch: int = 64,
    done: Callable[[int], Any] = lambda rows: None,
) -> Tensor:
    """forward(input_ids, attention_mask) of every row, in row order: (..., N, C) float32 on the CPU.

    `done` is told the number of rows after each batch.
    """
    outputs, order = [], []
    for rows in length_buckets(encoded.lengths, rows_per_batch):
        ids, mask = collate(encoded, rows, pad_id)
        outputs.append(forward(ids.to(device), mask.to(device)).float().cpu())
        order += rows
        done(len(rows))
    result = torch.cat(outputs, -2)
    return result[..., torch.tensor(order).argsort(), :]


def plain(model: PreTrainedModel) -> Callable[[Tensor, Tensor], Tensor]:
    """A Hugging Face sequence classifier as `run` calls it."""
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits


def pooling_of(source: str, local: bool) -> str:
    """The pooling that the encoder was trained with: mean, cls or max, by 1_Pooling/config.json; mean without it.

    Raises:
        InputError: the file is damaged, or names another pooling.
    """
    name = "1_Pooling/config.json"
    path = cached_file(source, name, local_files_only=local, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return "mean"
    try:
        settings = dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as JSON; get the encoder again") from error
    chosen = [kind for old, kind in POOLINGS.items() if settings.get(f"pooling_mode_{old}")]
    chosen += [settings["pooling_mode"]] if "pooling_mode" in settings else []
    if len(chosen) != 1 or chosen[0] not in POOLINGS.values():
        raise InputError(f"{path}: expected one pooling of {', '.join(POOLINGS.values())}; give an encoder with one")
    return chosen[0]


def scores(logits: Tensor, labels: list[int]) -> dict[str, float]:
    """Accuracy and macro-averaged F1 of logits (N,C), as fractions."""
    predicted = logits.argmax(-1).numpy()
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def confusion(logits: Tensor, labels: list[int]) -> list[list[int]]:
    """Rows: true class; columns: predicted class; counts (C,C)."""
    classes = list(range(logits.shape[-1]))
    return confusion_matrix(labels, logits.argmax(-1).numpy(), labels=classes).tolist()
