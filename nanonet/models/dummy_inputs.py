"""Inputs on which two models are compared, and the comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanonet.models.pairs import text_pair


def dummy_inputs(config: Any, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Two rows of eight tokens, the second one padded: ids and attention mask (2,8), to compare two models on. Where
    the model reads pairs, each row is one."""
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    step = 7919 if config.vocab_size % 7919 else 7907  # both prime: the other one would make all ids 0
    ids = torch.arange(16).view(2, 8) * step % config.vocab_size
    ids = torch.where(ids == pad, (pad + 1) % config.vocab_size, ids)
    if pair := text_pair(config):
        ids[:, 3] = pair["separator"]
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = pad, 0
    return ids.to(device), mask.to(device)


def same_logits(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding: what two models say of the dummy inputs."""
    return bool(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(b.abs().max()))))
