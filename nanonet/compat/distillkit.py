"""DistillKit's losses over our op: kl, jsd and tvd of dense teachers, kl of sparse ones; functions (sums) and classes.

Exact: the sum over rows (B,T) times their mask (B,T) or (B,T,1), bool or weights; the classes multiply by temperature^2
and divide by `num_items_in_batch`, else by the sum of the mask, else by the number of rows.
Of a sparse teacher: missing ZERO leaves the other tokens out, SYMMETRIC_UNIFORM makes them one class. Not offered, and
raises: sparse jsd and tvd; values that are no log-probabilities; a temperature other than the one that the values were
generated at. The teacher is a constant: one that requires grad raises. chunk_length changes nothing here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nanonet.compat.rows import mean_divergence
from nanonet.ops import TopK

TAILS = {"ZERO": False, "SYMMETRIC_UNIFORM": True}  # by the names of DistillKit's MissingProbabilityHandling


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


def _tail(missing: Any) -> bool:
    name = getattr(missing, "name", missing)
    if name not in TAILS:
        raise ValueError(f"missing: expected {' or '.join(TAILS)}, got {missing!r}")
    return TAILS[name]


def sparse_kl_div(
    logits: Tensor,
    target_ids: Tensor,
    target_values: Tensor,
    mask: Tensor | None = None,
    eps: float = 1e-8,
    missing: Any = "ZERO",
    log_target: bool = True,
    temperature: float = 1.0,
    target_generation_temperature: float = 1.0,
    student_generation_temperature: float = 1.0,
    chunk_length: int | None = None,
) -> Tensor:
    """sum of KL(p, q) over the rows, of log-probabilities target_values (B,T,k) at target_ids, in the logits' dtype."""
    tail = _tail(missing)
    if not log_target:
        raise NotImplementedError("log_target: logits of some tokens are no log-probabilities; log_softmax them first")
    if temperature != target_generation_temperature or student_generation_temperature != 1:
        raise NotImplementedError(
            f"temperature {temperature}: only the one that the teacher's values were generated at is offered"
            f" ({target_generation_temperature}), and 1 for the student's logits"
        )
    if eps != 1e-8:
        raise ValueError(f"eps: a tail below 1e-7 counts as 1e-7 here; leave it out, got {eps}")
    mask = mask.squeeze(-1) if mask is not None and mask.dim() == 3 else mask
    teacher = TopK(target_ids, target_values, tail)
    return mean_divergence(logits, teacher, 1, row_weight=mask, temperature=temperature).to(logits.dtype)


class _DenseLoss:
    """Called as DistillKit's trainer calls a loss: outputs with `logits`, a signal with the teacher's `logits`."""

    label = ""
    dense: Any = None

    def __init__(
        self, temperature: float, missing_probability_handling: Any = None, sparse_chunk_length: int | None = None
    ) -> None:
        self.temperature, self.missing = temperature, missing_probability_handling or "ZERO"
        _tail(self.missing)

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
        elif self.label == "kl":
            total = sparse_kl_div(
                logits,
                signal.sparse_ids,
                signal.sparse_values,
                mask,
                missing=self.missing,
                log_target=signal.log_values,
                temperature=self.temperature,
                target_generation_temperature=signal.generation_temperature,
            )
        else:
            raise NotImplementedError(f"signal: a sparse teacher is offered for kl alone, not for {self.label}")
        return total * self.temperature**2 / num_items_in_batch


class KLDLoss(_DenseLoss):
    label, dense = "kl", dense_kl_div


class JSDLoss(_DenseLoss):
    label, dense = "jsd", dense_js_div


class TVDLoss(_DenseLoss):
    label, dense = "tvd", dense_tvd
