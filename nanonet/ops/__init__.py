"""The public ops: what other distillation code swaps in."""

from nanonet.ops.cohort_linear import cohort_linear
from nanonet.ops.distill import distill_loss, distill_terms
from nanonet.ops.linear_loss import distill_linear_loss
from nanonet.ops.topk import TopK

__all__ = ["TopK", "cohort_linear", "distill_linear_loss", "distill_loss", "distill_terms"]
