"""DistillKit's losses of dense teachers over our op: kl, jsd and tvd, as functions (sums) and as loss classes.

Exact: the sum over rows (B,T) times their mask (B,T) or (B,T,1), bool or weights; the classes multiply by temperature^2
and divide by `num_items_in_batch`, else by the sum of the mask, else by the number of rows.
Not offered: sparse teachers (ids and log-probabilities), which raise; so the options of the classes that only those
have must be left at None. The teacher is a constant: one that requires grad raises.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nanonet.compat.rows import mean_divergence


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


class _DenseLoss:
    """Called as DistillKit's trainer calls a loss: outputs with `logits`, a signal with the teacher's `logits`."""

    label = ""
    dense: Any = None

    def __init__(
        self, temperature: float, missing_probability_handling: Any = None, sparse_chunk_length: int | None = None
    ) -> None:
        if missing_probability_handling is not None or sparse_chunk_length is not None:
            raise NotImplementedError(
                "missing_probability_handling, sparse_chunk_length: sparse teachers are not offered"
            )
        self.temperature = temperature

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
        if not hasattr(signal, "logits"):
            raise NotImplementedError(f"signal: sparse teachers are not offered, got {type(signal).__name__}")
        logits = student_outputs.logits
        if num_items_in_batch is None:
            num_items_in_batch = logits.shape[:-1].numel() if mask is None else mask.float().sum()
        total = type(self).dense(logits, signal.logits, mask=mask, temperature=self.temperature)
        return total * self.temperature**2 / num_items_in_batch


class KLDLoss(_DenseLoss):
    label, dense = "kl", dense_kl_div


class JSDLoss(_DenseLoss):
    label, dense = "jsd", dense_js_div


class TVDLoss(_DenseLoss):
    label, dense = "tvd", dense_tvd
