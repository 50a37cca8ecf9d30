"""The benchmark measures what it says, refuses a wrong kernel, and keeps its keys; small cases for pytest-benchmark."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from nanonet import distill_loss, distill_terms
from nanonet.benchmarks import bench_distill, bench_linear, bench_step, gpu_table, measure
from nanonet.benchmarks.step_programs import Case
from nanonet.cli.main import main
from nanonet.config.train import Tuning

KEYS = [
    "op", "shape", "dtype", "device", "implementation", "p20_ms", "p50_ms", "p80_ms", "bytes_floor", "floor_fraction",
    "peak_mem_mb", "error", "reference_error", "versions", "commit",
]  # fmt: skip


@pytest.fixture
def tiny_case(tiny_data: Path, tiny_encoder: Path) -> Case:
    return Case(data=str(tiny_data), teacher=str(tiny_encoder))


@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("name", ["closed", "ours"])
def test_every_implementation_computes_the_same_loss_and_gradient(name, K):
    student, teacher, label = bench_distill.setup(K, 8, 12, torch.float32)
    results = []
    for loss in (bench_distill.naive, getattr(bench_distill, name)):
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher, label)
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_json_lines_have_the_agreed_keys(capsys, tmp_path: Path):
    plot = tmp_path / "times.svg"
    flags = ["--json", "--eager-only", "--shapes", "2x64x400", "--dtypes", "float32", "--plot", str(plot)]
    assert main(["bench", *flags]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(list(record) == KEYS for record in records)
    by_name = {record["implementation"]: record for record in records}
    assert {"nanonet", "nanonet-op", "nanonet-op-fresh", "naive", "closed", "torchtune", "sum", "memcpy"} == set(
        by_name
    )
    assert by_name["memcpy"]["floor_fraction"] == 1 and by_name["nanonet"]["bytes_floor"] == 5 * 64 * 400 * 4
    assert all(0 < r["p20_ms"] <= r["p50_ms"] <= r["p80_ms"] for r in records)
    assert plot.read_text().startswith("<?xml")


def test_the_other_suites_have_the_same_keys_and_their_own(tiny_case, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(bench_linear, "SHAPES", ((2, 3, 8, 4, 2),))
    assert main(["bench", "--linear", "--json", "--dtypes", "float32"]) == 0
    linear = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(list(r) == [*KEYS, "weight", "tuning", "phase"] for r in linear)
    assert {r["implementation"] for r in linear} == {*bench_linear.CALLS, "peft", "gemm"}
    monkeypatch.setattr(bench_step, "BATCHES", 1)
    monkeypatch.setattr(bench_step, "FIXED_TOKENS", 64)
    case = replace(tiny_case, batch=6, tuning="lora")
    step = list(bench_step.records((2,), ("lora",), ("float32",), case, memory=False, seconds=0.01))
    assert all(list(r) == [*KEYS, "K", "tuning", "layers", "data", "rows_per_s"] for r in step)
    assert [r["implementation"] for r in step] == list(bench_step.implementations(case))
    assert all(r["rows_per_s"] > 0 and r["K"] == 2 for r in step)


def test_a_baseline_that_fails_is_named_and_ours_is_not_passed_over(capsys):
    def fails():
        raise RuntimeError("of another version\nand more")

    clock = partial(measure.times_ms, seconds=0.01)
    times = dict(measure.each_ms({"liger": fails, "nanonet": lambda: None}, clock, optional={"liger"}))
    assert list(times) == ["nanonet"]
    assert capsys.readouterr().err == "liger: not timed (RuntimeError: of another version)\n"
    with pytest.raises(RuntimeError, match="another version"):
        dict(measure.each_ms({"nanonet": fails}, clock, optional={"liger"}))


@pytest.mark.parametrize("stacked", [False, True])
def test_every_linear_layer_computes_the_same(stacked: bool):
    arguments = bench_linear.setup(3, 4, 8, 5, 2, torch.float32, "cpu", stacked, lora=True)
    dy = torch.randn(3, 4, 5)
    wanted = bench_linear.linear(*arguments)
    for call in bench_linear.CALLS.values():
        torch.testing.assert_close(call(*arguments), wanted)
    gradients = bench_linear.with_backward(bench_linear.linear, arguments, dy, False)()
    call, trained = bench_linear.peft(arguments)
    x = arguments[0].clone().requires_grad_()
    y = call(x)
    torch.testing.assert_close(y, wanted)
    dx, *others = torch.autograd.grad(y, [x, *trained], dy)
    torch.testing.assert_close(dx, gradients[0])
    for i, gradient in enumerate(gradients[1:]):  # bias, A and B of every student
        torch.testing.assert_close(torch.stack(others[i::3]), gradient)


@pytest.mark.parametrize("tuning", ["full", "bias", "head"])
def test_the_cohort_and_the_loop_take_the_same_step(tuning: Tuning, tiny_case, monkeypatch: pytest.MonkeyPatch):
    """What is timed beside each other is one training step: the same loss before and after an update."""
    monkeypatch.setattr(bench_step, "BATCHES", 1)
    case = replace(tiny_case, batch=20, tuning=tuning)
    (batch,), C = bench_step.batches(case)
    losses = {}
    # no graph is made on a CPU
    ours = ("", "-uncached", "-checkpoint", "-padded", "-grouped", "-packed", "-graph")
    for name in (*("cohort" + kind for kind in ours), "eager-loop-cached"):
        run = bench_step.make_step(name, case, C)
        losses[name] = [run(batch), run(batch)]
    for name, found in losses.items():
        assert found == pytest.approx(losses["cohort"], rel=2e-3), name
        assert found[1] < found[0]


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys):
    def wrong(student, teacher, label):
        return 1.01 * distill_loss(student, teacher, label, weights=bench_distill.WEIGHTS)[0]

    monkeypatch.setattr(bench_distill, "ours", wrong)
    assert main(["bench", "--json", "--eager-only", "--shapes", "2x4x8", "--dtypes", "float32"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "not timed" in told.err


@pytest.mark.parametrize(
    "flags",
    [
        ["--step", "--linear"],
        ["--step", "--students", "two"],
        ["--step", "--tunings", "neck"],
        ["--step", "--batch", "2"],
        ["--no-memory"],
        ["--students", "2"],
        ["--linear", "--shapes", "2x3x4"],
        ["--shapes", "2x3"],
        ["--shapes", "2x0x4"],
        ["--dtypes", "int8"],
        ["--plot", "a.pdf"],
        ["--plot", "there.png"],
    ],
)
def test_bad_flags(flags, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").touch()
    assert main(["bench", *flags]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_table_of_the_gpu_has_what_was_measured_and_else_nothing(tmp_path):
    file = tmp_path / "gpu.jsonl"
    empty = gpu_table.table(file).splitlines()
    assert len(empty) > 10 and all(line.endswith("|  |") for line in empty[2:])
    sizes = lambda names, shape: dict(zip(names, shape, strict=True))  # noqa: E731
    own = dict(dtype="bfloat16", device="a GPU", commit="abc", versions={}, op="distill_loss", floor_fraction=0.5)
    lines = [own | dict(shape=sizes("KNC", gpu_table.LARGE), implementation="nanonet-op", p50_ms=4.0)]
    times = {"nanonet-graph": 0.004, "nanonet": 0.03, "sum": 0.02, "naive": 0.6}
    lines += [own | dict(shape=sizes("KNC", gpu_table.TINY), implementation=n, p50_ms=t) for n, t in times.items()]
    layer = own | dict(op="cohort_linear", shape=sizes("KMDFR", gpu_table.LAYER), weight="shared", tuning="lora")
    times = {"nanonet-graph": 1.1, "peft-graph": 1.3, "gemm-graph": 1.0}
    lines += [layer | dict(phase="forward", implementation=n, p50_ms=t) for n, t in times.items()]
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"cut off')
    cells = [line.split(" | ")[-1].removesuffix(" |").strip("| ") for line in gpu_table.table(file).splitlines()[2:12]]
    assert [cell for cell in cells if cell] == ["50% (4 ms)", "4 us; 1.50x; 20x", "1.100x (PEFT 1.30x)"]


def test_memory_beyond_inputs_and_gradient_is_of_the_order_of_the_rows():
    K, N, C = 2, 128, 30522
    inputs = bench_distill.setup(K, N, C, torch.float32)
    gradient_mb = K * N * C * 4 / 2**20
    ours = measure.peak_mb(bench_distill.op_reused(*inputs))
    plain = measure.peak_mb(bench_distill.with_backward(bench_distill.naive, *inputs))
    # a row of scratch a thread and the allocator's own: far from one more (N,C) tensor of 15 MB
    assert ours < gradient_mb + 5 and plain > 2 * gradient_mb


def test_the_op_of_terms_is_the_gradient_of_their_sum():
    student, teacher, label = bench_distill.setup(3, 8, 12, torch.float32)
    leaf = student.requires_grad_()
    distill_terms(leaf, teacher, label).sum().backward()
    torch.testing.assert_close(bench_distill.op_terms(student.detach(), teacher, label)(), leaf.grad)


@pytest.mark.benchmark(warmup=True, max_time=0.2)
@pytest.mark.parametrize("K", [2, 4])
@pytest.mark.parametrize("name", ["ours", "closed", "naive"])
def test_small_case(benchmark, name, K):
    benchmark(bench_distill.with_backward(getattr(bench_distill, name), *bench_distill.setup(K, 32, 4, torch.float32)))
