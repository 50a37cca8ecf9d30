"""Time, memory and recall of the frozen teacher's graph of nearest neighbours: faiss, and every row with every other.

    python benchmarks/bench_graph.py --rows 50000 200000 > graph.jsonl
    python benchmarks/bench_graph.py --rows 200000 --embedding rows.npy > graph.jsonl

The rows are random clusters: unit centres, one for 100 rows, 16 directions of its own around each, a little noise in
all 384. With --embedding: the real ones (M,D) of a file, and rows between them and one of their ten nearest, with noise
of a quarter of the distance, until there are so many. One JSON line for each number of rows, of one cold call.

recall is that of 2,000 rows, not those by which the number of cells was chosen; cpu_s is the time of all threads [s].
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nanonet.benchmarks.measure import peak_mb, record
from nanonet.teacher.neighbours import NEIGHBOURS, affinities, exact_neighbours, faiss_neighbours

TESTED = 2000


def clusters(rows: int, D: int = 384, directions: int = 16) -> Tensor:
    """(N,D) float32, L2-normalised."""
    centre = normalize(torch.randn(-(-rows // 100), D))
    own = torch.randperm(rows) % len(centre)
    x = 0.005 * torch.randn(rows, D) + centre[own]
    for c in range(len(centre)):
        mine = (own == c).nonzero()[:, 0]
        x[mine] += 0.3 * torch.randn(len(mine), directions) @ torch.randn(directions, D) / D**0.5
    return normalize(x)


def enlarged(real: Tensor, rows: int) -> Tensor:
    """(N,D): the `real` rows (M,D), and others on the way to a near row, up to 0.7 of it."""
    _, near = exact_neighbours(real, 10, torch.arange(len(real)))
    start = torch.randint(len(real), (max(0, rows - len(real)),))
    way = real[near[start, torch.randint(10, start.shape)]] - real[start]
    noise = normalize(torch.randn_like(way)) * way.norm(dim=1, keepdim=True) / 4
    return torch.cat([real, normalize(real[start] + 0.7 * torch.rand(len(way), 1) * way + noise)])[:rows]


def compare_all(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return exact_neighbours(x, k, torch.arange(len(x)))


def measure(name: str, find: Callable[[Tensor, int], tuple[Tensor, Tensor]], x: Tensor) -> dict[str, Any]:
    """The record of one call, with what it found of the neighbours of TESTED rows."""
    found: dict[str, Any] = {}

    def run() -> None:
        began, cpu = time.perf_counter(), time.process_time()
        found["column"] = (neighbours := find(x, NEIGHBOURS))[1]
        affinities(*neighbours)
        found["ms"], found["cpu_s"] = (time.perf_counter() - began) * 1e3, time.process_time() - cpu

    peak = peak_mb(run, warm=False)
    rows = torch.randperm(len(x))[:TESTED]
    _, true = exact_neighbours(x, NEIGHBOURS, rows)
    recall = (found["column"][rows][:, :, None] == true[:, None]).any(1).double().mean().item()
    shape, times = {"N": len(x), "D": x.shape[1]}, np.array([found["ms"]])
    return record("graph", shape, "float32", "cpu", name, times, peak_mem_mb=peak, recall=recall, cpu_s=found["cpu_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=[200_000], type=int, nargs="+", help="(default: 200000)")
    parser.add_argument("--embedding", type=Path, help="a .npy file of L2-normalised embeddings")
    parser.add_argument("--exact", action="store_true", help="compare every row with every other, too")
    arguments = parser.parse_args()
    for rows in arguments.rows:
        torch.manual_seed(0)
        path = arguments.embedding
        x = enlarged(torch.from_numpy(np.load(path)).float(), rows) if path else clusters(rows)
        print(json.dumps(measure("faiss", faiss_neighbours, x)), flush=True)
        if arguments.exact:
            print(json.dumps(measure("exact", compare_all, x)), flush=True)


if __name__ == "__main__":
    main()
