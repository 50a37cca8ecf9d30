"""TRL's generalised JSD (`GKDTrainer.generalized_jsd_loss`) over our op, and how to put it in its place.

Exact: beta from 0 (KL(teacher, student)) to 1 (KL(student, teacher)), temperature (no tau^2, as TRL has it), labels of
-100, the reductions batchmean, sum and mean, `num_items_in_batch`. The loss is float32, or float64 for float64 logits,
where TRL's has the logits' dtype; where no row counts it is 0.
Not offered: reduction="none", an element for each class, and a gradient of the teacher, which raise.

`server_forward_kl_loss` is the loss of TRL's ServerDistillationTrainer at beta 0, from what a vLLM server returns, and
`server_top_1_loss` its form at a beta above 0. `chunked_divergence` takes the arguments of TRL 1.16's
`ChunkedDivergenceFunction` and the row weights: it returns the weighted sum, where TRL's has a value for each row.
`chunked_sparse_divergence` is the loss of its AsyncDistillationTrainer: hidden states, and a teacher's candidates.
GOLDTrainer's `generalized_jsd_loss` is GKDTrainer's; its form of the probabilities of matched tokens raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import getattr_static
from typing import Any

import torch
from torch import Tensor

from nanonet.compat.rows import mean_divergence
from nanonet.ops import TopK, distill_linear_loss

IGNORED = -100


def generalized_jsd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    num_items_in_batch: Tensor | int | None = None,
    logits_are_probs: bool = False,
) -> Tensor:
    """beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q, over the rows whose label is not -100.

    Logits (...,C), labels (...). Raises ValueError for another reduction, NotImplementedError for logits_are_probs.
    """
    if logits_are_probs:
        raise NotImplementedError("logits_are_probs: probabilities of matched tokens do not sum to 1; give logits")
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


def server_forward_kl_loss(
    teacher_result: dict[str, Tensor], student_log_probs: Tensor, labels: Tensor, loss_add_tail: bool = True
) -> Tensor:
    """KL of the teacher's top k and the student, over the rows whose label is not -100, divided by their number.

    teacher_result: topk_logprobs (B,T,k), -inf where a row has fewer, and topk_token_ids (B,T,k).
    student_log_probs (B,T,V), or logits; labels (B,T). With loss_add_tail the other tokens are one more class, without
    it both sides are renormalised over the k.
    """
    ids, logprobs = teacher_result["topk_token_ids"], teacher_result["topk_logprobs"]
    counted = labels != IGNORED
    ids = torch.where((logprobs > -torch.inf) & counted[..., None], ids, -1)
    teacher = TopK(ids, logprobs.clamp_max(0), True if loss_add_tail else "renormalise")
    return mean_divergence(student_log_probs, teacher, counted.sum().clamp_min(1), row_weight=counted)


def server_top_1_loss(
    teacher_result: dict[str, Tensor],
    student_log_probs: Tensor,
    completion_tokens: Tensor,
    labels: Tensor,
    beta: float,
    loss_add_tail: bool = True,
) -> Tensor:
    """The generalised JSD on the teacher's likeliest token and the one that was sampled, as `server_forward_kl_loss`.

    teacher_result: topk_logprobs and topk_token_ids (B,T,1), and actual_logprobs (B,T) of completion_tokens (B,T).
    At beta 1 the sampled token stands alone.
    """
    counted = labels != IGNORED
    ids, logprobs = completion_tokens[..., None], teacher_result["actual_logprobs"][..., None]
    if beta < 1:
        first, of_first = teacher_result["topk_token_ids"], teacher_result["topk_logprobs"]
        ids = torch.cat([first, torch.where(ids == first, -1, ids)], -1)
        logprobs = torch.cat([of_first, logprobs], -1)
    missing = counted[..., None] & (ids >= 0) & ~logprobs.isfinite()
    if missing.any():  # TRL looks too
        raise ValueError(
            f"teacher_result: log-probabilities are missing at {int(missing.any(-1).sum())} counted tokens"
        )
    ids = torch.where(counted[..., None], ids, -1)
    teacher = TopK(ids, logprobs.clamp_max(0), True if loss_add_tail else "renormalise")
    denominator = counted.sum().clamp_min(1)
    return mean_divergence(student_log_probs, teacher, denominator, row_weight=counted, divergence="js", beta=beta)


def chunked_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    beta: float,
    temperature: float = 1.0,
    student_logit_scale: float = 1.0,
    student_final_logit_softcapping: float | None = None,
    teacher_logit_scale: float = 1.0,
    teacher_final_logit_softcapping: float | None = None,
    *,
    row_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """sum_n r_n D(p_n, q_n) and the student's mean entropy, weighed by r, from hidden states (N,D) and heads (V,D).

    D is the generalised JSD of beta, without tau^2; logits are scaled, then capped, then divided by the temperature.
    """
    dtype = torch.float64 if student_hidden.dtype == torch.float64 else torch.float32
    rows = student_hidden.new_full((), len(student_hidden), dtype=dtype) if row_weight is None else row_weight.sum()
    loss, means = distill_linear_loss(
        student_hidden,
        student_weight,
        teacher_hidden,
        teacher_weight,
        bias=student_bias,
        teacher_bias=teacher_bias,
        transform=_transform(student_logit_scale, student_final_logit_softcapping),
        teacher_transform=_transform(teacher_logit_scale, teacher_final_logit_softcapping),
        weights=(0.0, temperature**-2, 0.0),
        row_weight=row_weight,
        denominators=torch.ones(2, dtype=dtype, device=student_hidden.device),
        temperature=temperature,
        divergence="js",
        beta=beta,
        student_entropy=True,
    )
    return loss, means[3, 0] / rows.to(dtype)


def chunked_sparse_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    target_ids: Tensor,
    teacher_logprobs: Tensor,
    candidate_mask: Tensor | None,
    beta: float,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    final_logit_softcapping: float | None = None,
    add_tail_bucket: bool = True,
) -> tuple[Tensor, Tensor]:
    """sum_n D(p_n, q_n) and the student's mean entropy, from hidden states (N,D) and a teacher's candidates (N,k).

    candidate_mask (N,k): False where a row has fewer. The student is taken at the temperature, the teacher as it is.
    """
    dtype = torch.float64 if student_hidden.dtype == torch.float64 else torch.float32
    ids = target_ids if candidate_mask is None else torch.where(candidate_mask, target_ids, -1)
    loss, means = distill_linear_loss(
        student_hidden,
        student_weight,
        TopK(ids, teacher_logprobs.clamp_max(0), True if add_tail_bucket else "renormalise"),
        bias=student_bias,
        transform=_transform(logit_scale, final_logit_softcapping),
        weights=(0.0, temperature**-2, 0.0),
        denominators=torch.ones(2, dtype=dtype, device=student_hidden.device),
        temperature=temperature,
        divergence="js",
        beta=beta,
        student_entropy=True,
    )
    return loss, means[3, 0] / max(len(student_hidden), 1)


def _transform(scale: float, softcap: float | None) -> Any:
    if softcap is None:
        return None if scale == 1 else lambda logits: logits * scale
    return lambda logits: softcap * torch.tanh(logits * (scale / softcap))


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
