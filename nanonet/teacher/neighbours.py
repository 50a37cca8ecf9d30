"""The graph of nearest neighbours of embeddings, along which soft_labels.py lets labels and probabilities flow.

Up to EXACT_ROWS rows each is compared with every other. The time of that grows with the square of the rows, so beyond
them faiss searches, where it is installed: k-means divides the rows into cells, and a row is compared with those of the
nearest few cells alone. How many that takes depends on the data, and is measured: as many as find RECALL of the true
neighbours of SAMPLE rows.
N rows, D features, Q rows whose neighbours are sought, k neighbours of each.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from torch import Tensor

from nanonet.progress import note

NEIGHBOURS = 20
SHARPNESS = 3  # an edge's weight is the cosine to this power
BLOCK = 1 << 26  # cosines in memory at a time
EXACT_ROWS = 50_000
RECALL, SAMPLE = 0.96, 500
PROBES = 4  # cells that are searched at first
SEED, KMEANS_ROUNDS, KMEANS_ROWS = 0, 6, 40  # k-means reads at most so many rows for each cell
SEARCH_ROWS = 4096  # of one call of faiss: Ctrl-C is heard between two


def neighbour_graph(
    embedding: NDArray[np.floating], neighbours: int = NEIGHBOURS, exact_rows: int = EXACT_ROWS
) -> csr_matrix:
    """Symmetrically normalised affinities D^-1/2 W D^-1/2 of L2-normalised embeddings (N,D): (N,N), sparse.

    Of more than `exact_rows` rows approximate, if faiss is installed; one line on standard error says what was done.
    The same input and number of threads give the same graph. float32 embeddings are not copied, but by faiss, once.
    """
    x = torch.as_tensor(embedding, dtype=torch.float32)
    k = min(neighbours, len(x) - 1)
    if len(x) > exact_rows and faiss_is_usable():
        return affinities(*faiss_neighbours(x, k))
    return affinities(*exact_neighbours(x, k, torch.arange(len(x)), tell=len(x) > exact_rows))


def affinities(value: Tensor, column: Tensor) -> csr_matrix:
    """The graph (N,N) of `neighbour_graph`, of the cosines (N,k) and row numbers (N,k) of every row's neighbours."""
    N, k = value.shape
    weight = value.clamp(min=1e-6).numpy() ** SHARPNESS
    rows = np.repeat(np.arange(N), k)
    graph = csr_matrix((weight.ravel(), (rows, column.numpy().ravel())), shape=(N, N))
    graph = graph.maximum(graph.T)
    scale = diags(1 / np.sqrt(np.asarray(graph.sum(1)).ravel()))
    return (scale @ graph @ scale).tocsr()


def exact_neighbours(x: Tensor, k: int, rows: Tensor, tell: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines (Q,k) float32, descending, and numbers (Q,k) int64 of the rows of x (N,D) nearest to `rows`, (Q,).

    `tell` says on standard error how long it takes, by the time of the first block, and what is faster.
    """
    values, columns = [], []
    began = time.perf_counter()
    for done, block in enumerate(rows.split(max(1, min(2048, BLOCK // len(x)))), 1):
        cosine = x[block] @ x.T
        cosine[torch.arange(len(block)), block] = -1  # a row is no neighbour of itself
        value, column = cosine.topk(k, -1)
        values.append(value)
        columns.append(column)
        if tell and done == 1:
            minutes = (time.perf_counter() - began) * len(rows) / len(block) / 60
            note(
                f"{len(x):,} rows are compared with each other for their neighbours, which takes about {minutes:,.0f}"
                " min; faiss is faster (Linux): pip install 'nanonet[scale]'"
            )
    return torch.cat(values), torch.cat(columns)


def faiss_is_usable() -> bool:
    """Not on macOS, where faiss and torch bring an OpenMP runtime each, and the second crashes."""
    return sys.platform == "linux" and importlib.util.find_spec("faiss") is not None


def faiss_neighbours(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `exact_neighbours` of all rows of x (N,D) float32, approximate: about RECALL of them are the nearest."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    N, D = x.shape
    cells = round(2 * N**0.5)
    index: Any = faiss.index_factory(D, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.max_points_per_centroid = SEED, KMEANS_ROUNDS, KMEANS_ROWS
    index.train(x.numpy())
    index.add(x.numpy())
    sample = torch.randperm(N, generator=torch.Generator().manual_seed(SEED))[:SAMPLE]
    nearest, _ = exact_neighbours(x, k, sample)
    index.nprobe = PROBES
    while (recall := _recall(index, x, sample, nearest)) < RECALL and index.nprobe < cells:
        index.nprobe = min(cells, index.nprobe + max(1, index.nprobe // 4))
    note(
        f"{N:,} rows: faiss finds {recall:.1%} of their neighbours, measured on {len(sample)} rows ({index.nprobe} of"
        f" {cells} cells searched)"
    )
    value, column = _search(index, x, torch.arange(N), k)
    short = (column < 0).any(-1).nonzero()[:, 0]  # the cells searched hold fewer than k other rows
    if len(short):
        value[short], column[short] = exact_neighbours(x, k, short)
    return value, column


def _recall(index: Any, x: Tensor, rows: Tensor, nearest: Tensor) -> float:
    """The share of the true neighbours of `rows` (Q,), whose cosines are `nearest` (Q,k), that the index finds.

    Judged by the cosine and not by the row's number: of equal texts any is right.
    """
    found, _ = _search(index, x, rows, nearest.shape[1])
    return (found >= nearest[:, -1:] - 1e-5).float().mean().item()


def _search(index: Any, x: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines (Q,k) and row numbers (Q,k) that the index finds for `rows` (Q,) of x (N,D); -1 where there are none."""
    values, columns = [], []
    for block in rows.split(SEARCH_ROWS):
        value, column = map(torch.from_numpy, index.search(x[block].numpy(), k + 1))
        other = column != block[:, None]
        other[other.all(-1), -1] = False  # among equal rows it need not find itself
        values.append(value[other].view(-1, k))
        columns.append(column[other].view(-1, k))
    return torch.cat(values), torch.cat(columns)
