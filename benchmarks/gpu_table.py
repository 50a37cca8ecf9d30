"""The targets on a GPU and the measurements of benchmarks/gpu.sh: the table of docs/lab/performance.md.

python benchmarks/gpu_table.py [FILE]        of another file than benchmarks/results/gpu.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "gpu.jsonl"
LARGE, MIDDLE, SMALL, TINY = (4, 8192, 128256), (4, 8192, 32000), (4, 1024, 100), (2, 32, 4)  # K, N, C
LAYER, ENCODER = (1, 8192, 4096, 4096, 16), (4, 2048, 768, 768, 8)  # K, M, D, F, R
Records = dict[tuple, dict[str, Any]]


def read(file: Path) -> Records:
    """{(shape, kind of weight, tuning, phase, implementation): record} of bfloat16; {} where there is no file."""
    found: Records = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            r = json.loads(line)
        except ValueError:  # cut off where the time was over
            continue
        if r["dtype"] == "bfloat16" and r["op"] in ("distill_loss", "cohort_linear"):
            own = tuple(r.get(name) for name in ("weight", "tuning", "phase"))
            found[(tuple(r["shape"].values()), *own, r["implementation"])] = r
    return found


def targets(found: Records) -> list[tuple[str, str, Callable[[], str]]]:
    """What is done, what it must reach, and what was measured, which raises KeyError where it was not."""

    def loss(shape: tuple, name: str) -> dict[str, Any]:
        return found[shape, None, None, None, name]

    def ms(shape: tuple, name: str) -> float:
        return loss(shape, name)["p50_ms"]

    def copied(shape: tuple, name: str) -> str:
        return f"{100 * loss(shape, name)['floor_fraction']:.0f}% ({ms(shape, name):.3g} ms)"

    def small(shape: tuple) -> str:
        in_graph, call, eager = (ms(shape, name) for name in ("nanonet-graph", "nanonet", "naive"))
        return f"{1e3 * in_graph:.3g} us; {call / ms(shape, 'sum'):.2f}x; {eager / call:.3g}x"

    def layer(shape: tuple, weight: str, phase: str, name: str, other: str) -> float:
        ours, theirs = (found[shape, weight, "lora", phase, one]["p50_ms"] for one in (name, other))
        return ours / theirs

    def against_gemm(phase: str) -> str:
        ours, peft = (layer(LAYER, "shared", phase, name, "gemm-graph") for name in ("nanonet-graph", "peft-graph"))
        return f"{ours:.3f}x (PEFT {peft:.2f}x)"

    both = "forward+backward"
    return [
        ("loss, 8192 x 128256, K = 4: logits read twice, of 14 passes", "85%", lambda: copied(LARGE, "terms-op")),
        ("the same by Triton in one launch, of the floor's 9", "55%", lambda: copied(LARGE, "triton-op")),
        ("the same, logits read once, of the floor's 9", "80%", lambda: copied(LARGE, "nanonet-op")),
        (
            "four calls of Liger's KL, without pairs, take longer by",
            "5x",
            lambda: f"{ms(LARGE, 'liger') / ms(LARGE, 'nanonet'):.2f}x",
        ),
        ("loss, 8192 x 32000, K = 4, of the floor", "60%", lambda: copied(MIDDLE, "nanonet-op")),
        ("loss, 1024 x 100, K = 4: on the GPU; call in `sum`s; eager's", "12 us; 2.5x; 10x", lambda: small(SMALL)),
        ("loss, 32 x 4, K = 2: likewise", "12 us; 2.5x; 10x", lambda: small(TINY)),
        ("LoRA layer, 8192 x 4096 x 4096, of the GEMM: forward", "1.05x", lambda: against_gemm("forward")),
        ("the same, forward and backward", "1.10x", lambda: against_gemm(both)),
        (
            "LoRA layer of 4 students, 2048 x 768 x 768: PEFT's loop takes longer by",
            "3x",
            lambda: f"{layer(ENCODER, 'stacked', both, 'peft', 'nanonet'):.2f}x",
        ),
    ]


def table(file: Path = RESULTS) -> str:
    """Markdown; the last column is empty where nothing was measured."""
    found = read(file)
    rows = ["| work (bfloat16) | must | measured |", "| --- | --- | --- |"]
    for work, must, measured in targets(found):
        try:
            cell = measured()
        except KeyError:
            cell = ""
        rows.append(f"| {work} | {must} | {cell} |")
    made = {(r["device"], r["commit"], json.dumps(r["versions"])) for r in found.values()}
    return "\n".join([*rows, *(f"\n{device}, {commit}, {versions}" for device, commit, versions in sorted(made))])


if __name__ == "__main__":
    print(table(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS))
