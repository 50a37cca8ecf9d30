"""A conformance kit for distillation losses: `print(check_distillation(fn, divergence="kl"))` judges any callable.

Judged against the definition in float64 (reference.py), from the inputs as they are stored: values, gradients, rows
that break naive formulas, layouts, masks, upstream gradients, determinism, and that every argument changes something.
The bar is twice the error that the same definition makes in torch in the same dtype, plus a small constant.
`check_cohort_linear`, `check_linear_loss`, `check_loss_ops` and `check_topk_ops` judge nanonet's own ops likewise,
whoever serves them.
"""

from nanonet.testing.check import check_distillation
from nanonet.testing.linear import check_cohort_linear
from nanonet.testing.linear_loss import check_linear_loss
from nanonet.testing.loss_ops import check_loss_ops
from nanonet.testing.report import Check, Report
from nanonet.testing.topk_ops import check_topk_ops

__all__ = [
    "Check",
    "Report",
    "check_cohort_linear",
    "check_distillation",
    "check_linear_loss",
    "check_loss_ops",
    "check_topk_ops",
]
