"""DistillKit's losses over our op: kl, jsd and tvd of dense and of sparse teachers; functions (sums) and classes.

Exact: the sum over rows (B,T) times their mask (B,T) or (B,T,1), bool or weights; the classes multiply by temperature^2
and divide by `num_items_in_batch`, else by the sum of the mask, else by the number of rows.
Of a sparse teacher: its values, log-probabilities or logits, at another temperature than they were generated at too.
Missing ZERO renormalises the teacher over its tokens, SYMMETRIC_UNIFORM makes the others one class; a tail below 1e-7,
where DistillKit clamps at eps, counts as 1e-7. chunk_length changes nothing here.
Not offered, and raises: an eps of one's own; a teacher that requires grad.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanonet.compat.rows import mean_divergence
from nanonet.ops import TopK

ZERO, UNIFORM = "ZERO", "SYMMETRIC_UNIFORM"  # the names of DistillKit's MissingProbabilityHandling


def _sum(divergence: str, logits: Tensor, target_logits: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    mask = mask.squeeze(-1) if mask is not None and mask.dim() == 3 else mask
    return mean_divergence(logits, target_logits, 1, row_weight=mask, temperature=temperature, divergence=divergence)


def dense_kl_div(logits: Tensor, target_logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """sum of KL(p, q) over the rows, in the logits' dtype."""
    return _sum("kl", logits, target_logits, mask, temperature).to(logits.dtype)


def dense_js_div(logits: Tensor, target_logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """sum of (KL(p, m) + KL(q, m)) / 2 over the rows, m = (p + q) / 2, in the logits' dtype."""
    return _sum("js", logits, target_logits, mask, temperature).to(logits.dtype)


def dense_tvd(logits: Tensor, target_logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """sum over the rows of sum |p - q| / 2, float32."""
    return _sum("tv", logits, target_logits, mask, temperature)


def _name_of(missing: Any) -> str:
    name = getattr(missing, "name", missing)
    if name not in (ZERO, UNIFORM):
        raise ValueError(f"missing: expected {ZERO} or {UNIFORM}, got {missing!r}")
    return name


def _log_p(values: Tensor, log_target: bool, alpha: float, missing: str) -> Tensor:
    """Log-probabilities of values, each to the power alpha, with or without one class for all others."""
    values = values.float() if values.dtype != torch.float64 else values
    if not log_target:
        if missing != ZERO:
            raise ValueError(f"missing: logits of some tokens say nothing of the others; give {ZERO}, got {missing}")
        return (alpha * values).log_softmax(-1)
    if missing == ZERO:
        return (alpha * values).log_softmax(-1)
    if alpha == 1:
        return values
    rest = (1 - values.exp().sum(-1, keepdim=True)).clamp(0, 1).log() * alpha
    return torch.cat([alpha * values, rest], -1).log_softmax(-1)[..., :-1]


def _sparse(divergence: str):
    def loss(
        logits: Tensor,
        target_ids: Tensor,
        target_values: Tensor,
        mask: Tensor | None = None,
        eps: float = 1e-8,
        missing: Any = ZERO,
        log_target: bool = True,
        temperature: float = 1.0,
        target_generation_temperature: float = 1.0,
        student_generation_temperature: float = 1.0,
        chunk_length: int | None = None,
    ) -> Tensor:
        name = _name_of(missing)
        if eps != 1e-8:
            raise ValueError(f"eps: a tail below 1e-7 counts as 1e-7 here; leave it out, got {eps}")
        log_p = _log_p(target_values, log_target, target_generation_temperature / temperature, name)
        mask = mask.squeeze(-1) if mask is not None and mask.dim() == 3 else mask
        # without mass elsewhere a kl has no term there, while jsd and tvd have the student's
        teacher = TopK(target_ids, log_p.clamp_max(0), name == UNIFORM or divergence != "kl")
        tau = temperature / student_generation_temperature
        total = mean_divergence(logits, teacher, 1, row_weight=mask, temperature=tau, divergence=divergence)
        return total if divergence == "tv" else total.to(logits.dtype)

    loss.__doc__ = f"""sum of the {divergence} over the rows, of values (B,T,k) at target_ids (B,T,k)."""
    return loss


sparse_kl_div, sparse_js_div, sparse_tvd = (_sparse(name) for name in ("kl", "js", "tv"))


class _Loss:
    """Called as DistillKit's trainer calls a loss: outputs with `logits`, a signal with the teacher's `logits`."""

    label = ""
    dense: Any = None
    sparse: Any = None

    def __init__(
        self, temperature: float, missing_probability_handling: Any = None, sparse_chunk_length: int | None = None
    ) -> None:
        self.temperature, self.missing = temperature, _name_of(missing_probability_handling or ZERO)

    @classmethod
    def name(cls) -> str:
        return cls.label

    def requires_hidden_states(self) -> bool:
        return False

    def __call__(
        self,
        student_outputs: Any,
        signal: Any,
        mask: Tensor | None = None,
        hidden_state_mapping: Any = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        logits = student_outputs.logits
        if num_items_in_batch is None:
            num_items_in_batch = logits.shape[:-1].numel() if mask is None else mask.float().sum()
        if hasattr(signal, "logits"):
            total = type(self).dense(logits, signal.logits, mask=mask, temperature=self.temperature)
        else:
            total = type(self).sparse(
                logits,
                signal.sparse_ids,
                signal.sparse_values,
                mask,
                missing=self.missing,
                log_target=signal.log_values,
                temperature=self.temperature,
                target_generation_temperature=signal.generation_temperature,
            )
        return total * self.temperature**2 / num_items_in_batch


class KLDLoss(_Loss):
    label, dense, sparse = "kl", dense_kl_div, sparse_kl_div


class JSDLoss(_Loss):
    label, dense, sparse = "jsd", dense_js_div, sparse_js_div


class TVDLoss(_Loss):
    label, dense, sparse = "tvd", dense_tvd, sparse_tvd
