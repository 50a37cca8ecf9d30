"""Wild arguments for every raw op, by hypothesis, in a process that may die of them.

    python tests/support/fuzz_ops.py EXAMPLES [SEED]

Whatever comes, an op answers with an exception or with numbers of the shapes that its contract gives; what it accepts
must fit that contract. Exits 0 if so, and prints how many calls it made. A call of a minute ends the process; none
gets more than MEMORY, what asks for more is refused.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import fuzz_tensors
from fuzz_linear import fuzz_layer, fuzz_linear_loss
from fuzz_loss import fuzz_loss
from fuzz_topk import fuzz_topk
from hypothesis import HealthCheck, seed, settings

from nanonet.schemas import SCHEMAS

MEMORY = 2 << 30  # bytes, beside those that are taken before the first call
FUZZERS = (fuzz_loss, fuzz_topk, fuzz_linear_loss, fuzz_layer)


def settings_for(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)


def main(examples: int, start: int | None) -> None:
    if sys.platform == "linux":
        limit_memory()
    for fuzz in FUZZERS:
        target = settings_for(-(-examples // len(FUZZERS)))(fuzz)
        (target if start is None else seed(start)(target))()
    left = SCHEMAS.keys() - fuzz_tensors.called
    assert not left, f"not called: {', '.join(sorted(left))}"
    print(fuzz_tensors.calls_made)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else None)
