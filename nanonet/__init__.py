"""nanonet: one teacher, a cohort of small students, one pass."""

from importlib.metadata import version

from nanonet import backends
from nanonet.ops import TopK, cohort_linear, distill_linear_loss, distill_loss, distill_terms

__version__ = version("nanonet")
__all__ = ["TopK", "cohort_linear", "distill_linear_loss", "distill_loss", "distill_terms"]

backends.load()
