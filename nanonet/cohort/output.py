"""What a cohort's forward returns, and the rows of a batch run in groups of like length.

K students, B rows, L tokens, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nanonet.data.batches import length_buckets

GROUP_STRIDE = 1299709  # between the dropout masks of two groups of rows


class CohortOutput(NamedTuple):
    """logits: (K,B,C); features: (K,B,D) input of the module that the caller named, else None."""

    logits: Tensor
    features: Tensor | None


class RowGroup(NamedTuple):
    """Rows of a batch that run together, cut to the `tokens` of the longest."""

    rows: list[int]
    tokens: int


def cat(outputs: Sequence[CohortOutput], dim: int) -> CohortOutput:
    """torch.cat of the logits and of the features: dim 0 joins students, dim 1 rows."""
    features = [output.features for output in outputs if output.features is not None]
    logits = torch.cat([output.logits for output in outputs], dim)
    return CohortOutput(logits, torch.cat(features, dim) if features else None)


def lengths(mask: Tensor) -> list[int]:
    """Up to where any student sees each row [tokens], at least 1: mask (K,B,L)."""
    place = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (mask.amax(0) * place).amax(-1).clamp(min=1).tolist()


def row_groups(mask: Tensor, group_rows: int) -> list[RowGroup]:
    """Groups of at most `group_rows` rows of like length; none where one group would hold all. mask (K,B,L)"""
    of_rows = lengths(mask)
    groups = length_buckets(of_rows, group_rows)
    return [RowGroup(rows, max(of_rows[row] for row in rows)) for rows in groups] if len(groups) > 1 else []


def run_groups(
    run: Callable[..., CohortOutput],
    ids: Tensor,
    mask: Tensor,
    seed: Tensor | None,
    groups: Sequence[RowGroup],
) -> CohortOutput:
    """run(ids, mask, seed=seed) of one group of rows after another; the output in the order of the rows.

    ids, mask: (K,B,L); seed: () int64 of LoRA's dropout, another one in every group.
    """
    outputs = []
    for g, group in enumerate(groups):
        own = slice(None), group.rows, slice(group.tokens)
        own_seed = None if seed is None else seed + g * GROUP_STRIDE
        outputs.append(run(ids[own], mask[own], seed=own_seed))
    order = torch.tensor([row for group in groups for row in group.rows]).argsort()
    logits, features = cat(outputs, 1)
    return CohortOutput(logits[:, order], None if features is None else features[:, order])
