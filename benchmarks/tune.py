"""Shared by the tuners: candidates are checked and timed until the time is over; the fastest are listed first."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def differs(y: Tensor, wanted: Tensor) -> bool:
    """Whether they differ by more than rounding: sums in another order differ in the last bits of the dtype."""
    return not (y - wanted).abs().max() <= 4 * torch.finfo(y.dtype).eps * wanted.abs().max()


def left_out(name: str, error: Exception) -> None:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    print(f"{name}: left out ({type(error).__name__}: {reason:.200})", file=sys.stderr)


def best(found: list[dict[str, Any]], plain: str) -> str:
    """A table of every shape and phase: the fastest five, and how many times as long as `plain` they take."""
    lines = []
    for case in dict.fromkeys((r.get("phase", ""), str(r["shape"])) for r in found):
        times = {r["implementation"]: r["p50_ms"] for r in found if (r.get("phase", ""), str(r["shape"])) == case}
        least = times.pop(plain)
        lines.append(f"{' '.join(case).strip()}: {plain} {least:.4g} ms")
        ours = sorted(times.items(), key=lambda item: item[1])[:5]
        lines += [f"  {time_ms / least:.3f}  {time_ms:.4g} ms  {name}" for name, time_ms in ours]
    return "\n".join(lines)


def main(records: Callable[[float], Iterator[dict[str, Any]]], plain: str, description: str) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=50, help="no candidate begins after so many")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU here")
    found = []
    try:
        for line in records(options.seconds):
            found.append(line)
            print(json.dumps(line), flush=True)
    finally:  # also after Ctrl-C
        print(best(found, plain), file=sys.stderr)
