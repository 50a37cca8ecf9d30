"""`nanonet check`: its table, its exit codes, its JSON; what it judges is in tests/installation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nanonet.backends import gate
from nanonet.cli.main import main
from nanonet.installation import parts
from nanonet.installation.parts import Part, Result, Row

KEY = {"gpu": "NVIDIA X9", "driver": "1.2", "torch": "t", "nanonet": "n", "triton": "r", "kernels": "k"}


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """What each kind of kernels is found to fail at: nothing, until a test says so."""
    found: dict[str, tuple[str, ...]] = {}

    def run(part: Part, limit_s: float) -> Result:
        bad = found.get(part.kernels, ())
        rows = [
            Row(part.kernels, part.device, "distill_loss", dtype, 10, worst, bad if dtype == "float32" else ())
            for dtype, worst in (("float32", None if bad else 0.25), ("bfloat16", 0.5))
        ]
        return Result(part, tuple(rows), True, 1.0)

    monkeypatch.setattr(parts, "run", run)
    monkeypatch.setattr(parts.cpp, "build_info", lambda: {"isa_supported": ["baseline", "avx2"], "isa_in_use": "avx2"})
    return found


def test_a_table_of_all_dtypes_and_exit_code_0(failures, capsys) -> None:
    assert main(["check", "--device", "cpu"]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[1].split() == ["C++", "baseline", "cpu", "distill_loss", "20", "0.50", "ok"]
    assert lines[2].startswith("C++ avx2") and lines[-1] == "40 checks against float64: all passed"
    assert "check of C++ avx2 on cpu: passed" in told.err


def test_a_failure_is_named_and_ends_with_1(failures, capsys) -> None:
    failures["C++ avx2"] = tuple(f"row {i} is wrong\x1b[2J" for i in range(20))
    assert main(["check", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[2].split()[-2:] == ["inf", "FAILED"]
    assert "C++ avx2, distill_loss: row 0 is wrong" in out and "\x1b" not in out
    assert "and 8 more (--json has all)" in out and out.endswith("20 failures\n")


def test_json(failures, capsys) -> None:
    failures["C++ avx2"] = ("wrong",)
    assert main(["check", "--device", "cpu", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False and found["gpus"] == [] and found["versions"]["torch"]
    assert [row["failures"] for row in found["rows"]] == [[], [], ["wrong"], []]


@pytest.mark.parametrize("flags", [["--limit", "0"], ["--device", "tpu"], ["--device", "cuda"]])
def test_bad_flags(flags: list[str], failures, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["check", *flags]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_gpu_is_checked_recorded_and_named(failures, capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(gate.VARIABLE, raising=False)
    monkeypatch.setattr(gate, "identity", lambda index: dict(KEY))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(parts, "MISSING", {})
    gate.forget()
    failures["CUDA C++"] = ("at the loss, kl: no answer in 120 s, stopped",)
    assert main(["check", "--device", "cuda"]) == 1
    out = capsys.readouterr().out
    assert "Triton passed, CUDA C++ FAILED: checked on NVIDIA X9 at" in out and "no answer in 120 s" in out
    assert "cpu" not in out and gate.passed(0) == {gate.TRITON}
    gate.forget()


@pytest.mark.slow
def test_this_installation_passes(capsys) -> None:
    assert main(["check", "--device", "cpu"]) == 0, capsys.readouterr().out
