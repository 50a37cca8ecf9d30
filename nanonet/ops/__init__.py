"""The public ops: what other distillation code swaps in."""

from nanonet.ops.cohort_linear import cohort_linear
from nanonet.ops.distill import distill_loss, distill_terms

__all__ = ["cohort_linear", "distill_loss", "distill_terms"]
