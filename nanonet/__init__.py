"""nanonet: one teacher, a cohort of small students, one pass."""

import importlib
from importlib.metadata import version
from typing import Any

from nanonet import backends
from nanonet.ops import TopK, cohort_linear, distill_linear_loss, distill_loss, distill_terms

__version__ = version("nanonet")
__all__ = ["Distiller", "TopK", "cohort_linear", "distill_linear_loss", "distill_loss", "distill_terms", "load"]
# what loads transformers: imported when it is asked for
_LAZY = {"Distiller": "nanonet.api", "load": "nanonet.inference.classifier"}

backends.load()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
