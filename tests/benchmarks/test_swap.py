"""The suite of call sites: its forms are what they stand for, ours agree with them, and every table is printed."""

from __future__ import annotations

import json

import pytest
import torch

from nanonet.benchmarks import bench_swap
from nanonet.benchmarks.bench_swap import SITES, with_backward
from nanonet.cli.main import main
from nanonet.config.commands import BenchConfig
from nanonet.errors import InputError


@pytest.mark.parametrize("site", SITES, ids=lambda site: f"{site.peer} {site.name}")
def test_ours_and_the_peers_form_agree(site):
    student, teacher = bench_swap.draw(6, 40, dtype=torch.float32)
    labels = torch.tensor([1, -100, 2, 3, -100, 4])
    given = (student, teacher, labels) if site.labelled else (student, teacher)
    leaf = student.clone().requires_grad_()
    torch.testing.assert_close(site.ours(leaf, *given[1:]), site.theirs(leaf, *given[1:]))
    torch.testing.assert_close(*(with_backward(loss, *given)() for loss in (site.ours, site.theirs)))


def test_the_form_of_trl_over_labels():
    student, teacher = bench_swap.draw(2, 5, 9, dtype=torch.float32)
    labels = torch.tensor([[1, -100, 2, 3, 4]] * 2)
    for beta in (0, 0.25):
        found = bench_swap.trl_jsd(student, teacher, labels, beta)
        torch.testing.assert_close(found, bench_swap.GKD(student, teacher, labels, beta))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch):
    for name, value in dict(ROWS=8, CLASSES=64, FRESH=(2, 4, 50), LORA=(6, 8, 8, 2), SECONDS=0.02).items():
        monkeypatch.setattr(bench_swap, name, value)
    clock = bench_swap.small_times_ms
    monkeypatch.setattr(bench_swap, "small_times_ms", lambda runs: clock(runs, rounds=2, calls=2))


def test_every_table_says_what_it_must_reach(small, capsys):
    assert main(["bench", "--swap", "--json", "--eager-only"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tables = {(line["op"], line["dtype"]): [] for line in lines}
    for line in lines:
        tables[line["op"], line["dtype"]].append(line)
        assert (
            line["device"].startswith("1 x ")
            and (line["must"] is None) == (line["implementation"] == "nanonet")
            or (line["implementation"] == "distill_loss")
        )
    assert len(tables) == 2 * (len(SITES) + 4) + 1  # the slice in float32 alone
    assert all(table[0]["implementation"] == "nanonet" for table in tables.values())
    errors = {(line["op"], line["dtype"]): line["reference_error"] / line["error"] for line in lines if line["error"]}
    assert errors["trl's js 0.25", "bfloat16"] > 4  # what TRL loses by computing in bfloat16
    assert main(["bench", "--swap", "--eager-only", "--dtypes", "float32"]) == 0
    assert "must" in capsys.readouterr().out


def test_a_wrong_loss_is_not_timed(small, monkeypatch: pytest.MonkeyPatch):
    wrong = bench_swap.Site("kl", lambda s, t: 1.01 * SITES[0].ours(s, t), "trl", SITES[0].theirs, 12, "kl")
    monkeypatch.setattr(bench_swap, "SITES", (wrong,))
    with pytest.raises(InputError, match="kl is wrong by 0.01"):
        list(bench_swap.records(("float32",), compiled=False))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--swap", "--linear"], "--linear --swap: give one of them"),
        (["--swap", "--shapes", "1x2x3"], "--shapes: it belongs to the loss"),
        (["--swap", "--device", "cuda"], "--device: it belongs to the other suites"),
        (["--linear", "--eager-only"], "--eager-only: it belongs to the losses"),
    ],
)
def test_flags_that_the_suite_would_ignore_are_refused(flags, says, capsys):
    assert main(["bench", *flags]) != 0
    assert says in capsys.readouterr().err


def test_the_flag_is_off_by_default():
    assert not BenchConfig().swap
