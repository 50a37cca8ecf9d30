"""The benchmarks of TopK teachers and of hidden states, with small sizes."""

import json

import pytest
import torch

from nanonet.benchmarks import bench_language
from nanonet.cli.main import main


@pytest.fixture
def small(monkeypatch):
    for name, value in {"TOPK": (8, 300, 8), "HIDDEN": (16, 8, 200), "EAGER_ROWS": 5, "SECONDS": 0.01}.items():
        monkeypatch.setattr(bench_language, name, value)
    monkeypatch.setattr(bench_language, "peak_mb", lambda call: 1.0)


@pytest.mark.parametrize("suite", ["--topk", "--from-hidden"])
def test_a_suite_has_its_records(suite, small, capsys):
    assert main(["bench", suite, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["dtype"] for line in lines} == {"float32", "bfloat16"}
    assert {"nanonet"} < {line["implementation"] for line in lines}
    assert all(line["peak_mem_mb"] == 1.0 for line in lines)


def test_the_eager_forms_are_the_same_loss():
    x, w, t, tw = (bench_language.draw(*shape, dtype=torch.float64) for shape in ((9, 4), (30, 4), (9, 4), (30, 4)))
    loss, gradients = bench_language.eager_hidden(x, w, t, tw)
    expected, exact = bench_language.ours_hidden(x, w, t, tw)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, exact, rtol=1e-4, atol=1e-5)  # the eager form takes its loss in float32
    torch.testing.assert_close(bench_language.eager_exact(x, w, t, tw), (expected, exact))


def test_a_wrong_result_is_not_timed(small, monkeypatch, capsys):
    right = bench_language.ours_hidden
    monkeypatch.setattr(bench_language, "ours_hidden", lambda *given: (0, [1.1 * g for g in right(*given)[1]]))
    assert main(["bench", "--from-hidden", "--dtypes", "float32"]) == 2
    assert "not timed" in capsys.readouterr().err
    assert main(["bench", "--from-hidden", "--topk"]) == 2
