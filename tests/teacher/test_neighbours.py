"""The graph of nearest neighbours: exact against the definition, faiss against exact."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from nanonet.device import threads
from nanonet.teacher import neighbours
from nanonet.teacher.neighbours import exact_neighbours, neighbour_graph

needs_faiss = pytest.mark.skipif(
    not neighbours.faiss_is_usable(), reason="faiss is not installed: pip install 'nanonet[scale]' (Linux)"
)


def unit_rows(rows: int, features: int = 24, centres: int = 30) -> np.ndarray:
    """L2-normalised rows (N,D) float32 around some centres."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(centres, features))[rng.integers(centres, size=rows)] + 0.5 * rng.normal(size=(rows, features))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def is_a_graph(graph, rows: int, k: int) -> bool:
    """Symmetric, without loops, of finite weights, at least k neighbours in each row."""
    assert graph.shape == (rows, rows) and np.isfinite(graph.data).all()
    assert abs(graph - graph.T).max() < 1e-6 and graph.diagonal().max() == 0
    return bool((np.diff(graph.indptr) >= k).all())


def test_the_graph_is_symmetric_without_loops_and_has_no_row_without_a_neighbour(clusters):
    x, _, _ = clusters(50)
    assert is_a_graph(neighbour_graph(x, 5), 50, 5)
    assert neighbour_graph(x[:3], 20).shape == (3, 3)


@pytest.mark.parametrize("block", [1, 7 * 100, 1 << 26])  # a row, seven rows, all rows at a time
def test_exact_neighbours_are_those_of_the_largest_cosines(block, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    x = unit_rows(100)
    cosine = x.astype(float) @ x.T.astype(float)
    np.fill_diagonal(cosine, -1)
    rows = torch.tensor([3, 99, 0])
    value, column = exact_neighbours(torch.from_numpy(x), 6, rows)
    np.testing.assert_array_equal(column, np.argsort(-cosine[rows], axis=1)[:, :6])
    np.testing.assert_allclose(value, -np.sort(-cosine[rows], axis=1)[:, :6], atol=1e-6)


def test_float32_and_float64_embeddings_have_the_same_graph():
    x = unit_rows(200)
    assert (neighbour_graph(x) != neighbour_graph(x.astype(float))).nnz == 0


def test_without_faiss_the_graph_is_exact_and_a_line_says_what_would_be_faster(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else found(name))
    x = unit_rows(300)
    exact = neighbour_graph(x)
    assert capsys.readouterr().err == ""
    assert (neighbour_graph(x, exact_rows=299) != exact).nnz == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nanonet: 300 rows are compared with each other") and "nanonet[scale]" in line


@needs_faiss
def test_faiss_finds_most_of_the_neighbours_says_so_and_finds_the_same_again(capsys):
    x = unit_rows(3000)
    exact = neighbour_graph(x)
    assert capsys.readouterr().err == ""
    found = neighbour_graph(x, exact_rows=2999)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nanonet: 3,000 rows: faiss finds 9") and "measured on 500 rows" in line
    assert is_a_graph(found, 3000, 20)
    both = (exact != 0).multiply(found != 0).nnz
    assert 0.95 < both / exact.nnz < 1  # of edges, which either of their rows may have found
    with threads(2):
        once, again = (neighbour_graph(x, exact_rows=2999) for _ in range(2))
    assert (once != again).nnz == 0


@needs_faiss
def test_the_cells_searched_grow_until_enough_is_found(monkeypatch, capsys):
    x = unit_rows(3000, centres=3000)  # no clusters: neighbours are everywhere
    monkeypatch.setattr(neighbours, "RECALL", 1.0)
    exact = neighbour_graph(x)
    found = neighbour_graph(x, exact_rows=2999)
    assert "faiss finds 100.0%" in capsys.readouterr().err
    assert (exact != 0).multiply(found != 0).nnz > 0.99 * exact.nnz


@needs_faiss
def test_equal_rows_and_lonely_ones_have_their_neighbours(monkeypatch):
    """Among 200 equal rows none finds itself in time; a cell of three rows holds too few, and all are compared."""
    x = unit_rows(600, centres=600)
    x[:200] = x[0]
    x[-3:] = np.eye(24, dtype=np.float32)[:3] * np.float32(-1)
    monkeypatch.setattr(neighbours, "RECALL", 0.0)  # as few cells as at first
    monkeypatch.setattr(neighbours, "PROBES", 1)
    compared = []

    def count_rows(x, k, rows):
        compared.append(len(rows))
        return exact_neighbours(x, k, rows)

    monkeypatch.setattr(neighbours, "exact_neighbours", count_rows)
    assert is_a_graph(neighbour_graph(x, exact_rows=599), 600, 20)
    assert compared[0] == 500 and 0 < compared[1] < 600  # the sample, then the rows whose cell holds too few
