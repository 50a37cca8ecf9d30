"""The benchmarks of TopK teachers and of hidden states, with small sizes."""

import json

import pytest
import torch

from nanonet.benchmarks import bench_language, hidden_peers
from nanonet.cli.main import main


@pytest.fixture
def small(monkeypatch):
    for name, value in {"TOPK": (8, 300, 8), "HIDDEN": (16, 8, 200), "SECONDS": 0.01}.items():
        monkeypatch.setattr(bench_language, name, value)
    monkeypatch.setattr(bench_language, "peak_mb", lambda call: 1.0)


@pytest.mark.parametrize("suite", ["--topk", "--from-hidden"])
def test_a_suite_has_its_records(suite, small, capsys):
    assert main(["bench", suite, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["dtype"] for line in lines} == {"float32", "bfloat16"}
    assert {"nanonet"} < {line["implementation"] for line in lines}
    assert all(line["peak_mem_mb"] == 1.0 for line in lines)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_other_projects_forms_are_the_same_loss(beta, monkeypatch):
    monkeypatch.setattr(hidden_peers, "CHUNK", 5)
    monkeypatch.setattr(hidden_peers, "TILE", (4, 7))
    given = [bench_language.draw(*shape, dtype=torch.float32, seed=n) for n, shape in enumerate([(9, 4), (30, 4)] * 2)]
    loss, gradients = bench_language.ours_hidden(*given, beta)
    for form in (hidden_peers.liger, hidden_peers.trl):
        value, found = form(*given, beta)
        torch.testing.assert_close(value, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-5)
    exact = bench_language.exact_hidden(given, beta)
    torch.testing.assert_close([g.double() for g in gradients], exact, rtol=1e-4, atol=1e-5)


def test_a_wrong_result_is_not_timed(small, monkeypatch, capsys):
    right = bench_language.ours_hidden
    monkeypatch.setattr(bench_language, "ours_hidden", lambda *given: (0, [1.1 * g for g in right(*given)[1]]))
    assert main(["bench", "--from-hidden", "--dtypes", "float32"]) == 2
    assert "not timed" in capsys.readouterr().err
    assert main(["bench", "--from-hidden", "--topk"]) == 2
