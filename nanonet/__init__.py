"""nanonet: one teacher, a cohort of small students, one pass."""

from importlib.metadata import version

from nanonet import backends
from nanonet.ops import cohort_linear, distill_loss, distill_terms

__version__ = version("nanonet")
__all__ = ["cohort_linear", "distill_loss", "distill_terms"]

backends.load()
