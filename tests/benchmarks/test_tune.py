"""The tuner of the compiled loss, without a GPU: which kernels it asks for, checks, leaves out and times."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nanonet.benchmarks import tune, tune_distill


@pytest.fixture
def asked(monkeypatch):
    """What the compiled module is asked for; a cluster of 8 has no room, one of 4 gives something else."""
    asked, now = [], []

    def use_kernel(name, cluster=1):
        asked.append((name, cluster))
        now[:] = asked[-1:]
        if cluster == 8:
            raise RuntimeError("no room\nfor such rows")

    def run(dstudent, *others):
        dstudent.copy_(torch.full_like(dstudent, 2.0 if now == [("cluster", 4)] else 1.0))

    monkeypatch.setitem(sys.modules, "nanonet._C_cuda", SimpleNamespace(use_kernel=use_kernel))
    monkeypatch.setattr(tune_distill, "DEVICE", "cpu")
    monkeypatch.setattr(tune_distill, "SHAPES", ((2, 8, 300),))
    monkeypatch.setattr(tune_distill, "OP", run)
    monkeypatch.setattr(tune_distill, "graph_ms", lambda runs, calls: {"": np.array([2.0])})
    return asked


def test_every_kernel_is_tried_and_the_table_serves_afterwards(asked, capsys):
    lines = list(tune_distill.records(60))
    assert [r["implementation"] for r in lines] == ["memcpy", "table", "cluster 16", "cluster 2", "sweep", "chip"]
    assert json.dumps(lines) and all(r["floor_fraction"] == 1.0 for r in lines)
    assert asked[-1] == (None, 1) and {("cluster", 16), ("sweep", 1), ("chip", 1)} < set(asked)
    said = capsys.readouterr().err
    assert "cluster 8: left out (RuntimeError: no room)" in said and "cluster 4: left out (ArithmeticError" in said


def test_it_ends_when_its_time_is_over(asked, capsys):
    assert [r["implementation"] for r in tune_distill.records(0)] == ["memcpy"]
    assert "not tried" in capsys.readouterr().err


def test_the_table_names_the_fastest_first():
    times = {"torch": 2.0, "slow": 4.0, "fast": 2.1}
    found = [dict(shape={"K": 1}, phase="dx", implementation=name, p50_ms=time_ms) for name, time_ms in times.items()]
    lines = tune.best(found, "torch").splitlines()
    assert lines == ["dx {'K': 1}: torch 2 ms", "  1.050  2.1 ms  fast", "  2.000  4 ms  slow"]
