"""TRL's generalised JSD (`GKDTrainer.generalized_jsd_loss`) over our op, and how to put it in its place.

Exact: beta from 0 (KL(teacher, student)) to 1 (KL(student, teacher)), temperature (no tau^2, as TRL has it), labels of
-100, the reductions batchmean, sum and mean, `num_items_in_batch`. The loss is float32, or float64 for float64 logits,
where TRL's has the logits' dtype; where no row counts it is 0.
Not offered: reduction="none", an element for each class, and a gradient of the teacher, which raise; top-k teachers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import getattr_static
from typing import Any

from torch import Tensor

from nanonet.compat.rows import mean_divergence

IGNORED = -100


def generalized_jsd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q, over the rows whose label is not -100.

    Logits (...,C), labels (...). Raises ValueError for another reduction.
    """
    counted = None if labels is None else labels != IGNORED
    denominator: Tensor | float
    if num_items_in_batch is not None:
        denominator = num_items_in_batch
    elif reduction == "batchmean":
        denominator = max(len(student_logits), 1) if counted is None else counted.sum().clamp_min(1)
    elif reduction == "sum":
        denominator = 1
    elif reduction == "mean":
        C = student_logits.shape[-1]
        denominator = student_logits.numel() if counted is None else counted.sum() * C
    else:
        raise ValueError(f"reduction: expected batchmean, sum or mean, got {reduction!r}: one value a row is the least")
    return mean_divergence(
        student_logits,
        teacher_logits,
        denominator,
        row_weight=counted,
        temperature=temperature,
        divergence="js",
        beta=beta,
    )


def patch(trainer: Any = None) -> Any:
    """Have TRL's GKDTrainer (or the class given, with the same method) call our loss; returns the method before."""
    trainer = trainer or _gkd_trainer()
    before = getattr_static(trainer, "generalized_jsd_loss")
    trainer.generalized_jsd_loss = staticmethod(generalized_jsd_loss)
    return before


@contextmanager
def patched(trainer: Any = None) -> Iterator[None]:
    """`patch` for the length of a `with` block."""
    trainer = trainer or _gkd_trainer()
    before = patch(trainer)
    try:
        yield
    finally:
        trainer.generalized_jsd_loss = before


def _gkd_trainer() -> Any:
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer
