"""The processes of the check: what hangs, dies or lies is a failed line, and only what passed is recorded."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nanonet.backends import cpp, gate
from nanonet.installation import parts
from nanonet.installation.parts import Part, Result, Row

GOOD = {"op": "distill_terms", "dtype": "float32", "checks": 3, "worst": 0.5, "failures": []}
BEGIN = "import json, os, sys, time\nsay = lambda **v: print(json.dumps(v), flush=True)\nsay(step='the loss')\n"
KEY = {"gpu": "NVIDIA X9", "driver": "1.2", "torch": "t", "nanonet": "n", "triton": "r", "kernels": "k"}


def run(code: str, limit_s: float = 20, begin: str = BEGIN) -> Result:
    part = Part(gate.TRITON, "cuda:0")
    return parts.run_command(part, [sys.executable, "-c", begin + code], dict(os.environ), limit_s)


def test_a_part_that_ends_well_passes() -> None:
    result = run(f"say(**{GOOD})\nprint('a library speaks')\nsay(step='')")
    assert result.passed and result.began
    assert result.rows == (Row(gate.TRITON, "cuda:0", **(GOOD | {"failures": ()})),)


def test_a_part_that_hangs_is_stopped_and_names_the_step() -> None:
    began = time.monotonic()
    result = run(f"say(**{GOOD})\nimport signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(100)", 1.5)
    assert time.monotonic() - began < 20 and not result.passed and result.began
    assert result.rows[0].op == "distill_terms"  # what had ended is kept
    assert result.rows[-1].failures == ("at the loss: no answer in 2 s, stopped",)


def test_every_step_has_the_limit_to_itself() -> None:
    code = f"for i in range(4):\n    time.sleep(0.8)\n    say(**{GOOD})\nsay(step='')"
    assert run(code, 2.5).passed


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("os.kill(os.getpid(), 4)", "at the loss: killed by SIGILL"),
        ("raise ValueError('no such\\ndevice')", "at the loss: ended with code 1: device"),
        ("sys.exit(0)", "at the loss: ended without a word"),
        ("os._exit(7)", "at the loss: ended with code 7"),
    ],
)
def test_a_part_that_dies_fails(code: str, what: str) -> None:
    result = run(f"say(**{GOOD})\n{code}")
    assert not result.passed and result.rows[-1].failures == (what,)


def test_a_part_that_says_nothing_fails_and_has_not_begun() -> None:
    result = run("", begin="")
    assert not result.passed and not result.began
    assert result.rows[-1].failures == ("before its first step: ended without a word",)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(gate.VARIABLE, raising=False)
    monkeypatch.setattr(gate, "identity", lambda index: dict(KEY))
    gate.forget()
    yield tmp_path
    gate.forget()


def result(kernels: str, good: bool = True, began: bool = True, device: str = "cuda:0") -> Result:
    row = Row(kernels, device, "distill_terms", "float32", 1, 0.5 if good else None, () if good else ("wrong",))
    return Result(Part(kernels, device), (row,), began, 1.0)


def test_what_passed_is_kept_and_serves_from_then_on(cache: Path) -> None:
    assert gate.passed(0) == frozenset()
    parts.keep([result(gate.CUDA, good=False), result(gate.TRITON), result("C++ avx2", device="cpu")], pytest.fail)
    assert gate.passed(0) == {gate.TRITON}
    record = gate.read_record(KEY)
    assert record is not None and record["failed"] == [gate.CUDA]


def test_a_gpu_that_was_busy_and_the_reference_are_not_recorded(cache: Path) -> None:
    parts.keep([result(gate.TRITON, good=False, began=False), result(parts.REFERENCE)], pytest.fail)
    assert gate.read_record(KEY) is None


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, cache: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said: list[str] = []
    parts.keep([result(gate.TRITON)], said.append)
    assert len(said) == 1 and "XDG_CACHE_HOME" in said[0]


@pytest.fixture
def one_gpu(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """A made-up GPU, and the parts that were run on it."""
    ran: list[Part] = []

    def fake(part: Part, limit_s: float) -> Result:
        ran.append(part)
        return result(part.kernels, good=part.kernels == gate.TRITON)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(parts, "MISSING", {})
    monkeypatch.setattr(parts, "run", fake)
    return ran


def test_the_first_meeting_checks_once_and_says_so(one_gpu: list[Part]) -> None:
    said: list[str] = []
    parts.ensure_checked(said.append)
    assert [part.kernels for part in one_gpu] == [gate.CUDA, gate.TRITON]  # two devices of one kind: checked once
    assert "first run on NVIDIA X9: checking its kernels" in said[0]
    assert "plain torch" in said[-1] and gate.passed(1) == {gate.TRITON}
    parts.ensure_checked(pytest.fail)
    assert len(one_gpu) == 2


def test_the_variable_turns_the_first_check_off(one_gpu: list[Part], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gate.VARIABLE, "0")
    parts.ensure_checked(pytest.fail)
    monkeypatch.delenv(gate.VARIABLE)
    monkeypatch.setattr(parts, "MISSING", {"CUDA": "no triton", "CUDA C++": "not built"})
    parts.ensure_checked(pytest.fail)
    assert one_gpu == [] and parts.gpu_parts(0) == [Part(parts.REFERENCE, "cuda:0")]


def test_every_instruction_set_of_this_cpu_is_a_part() -> None:
    built = cpp.build_info()
    found = parts.cpu_parts()
    if not built:
        assert found == [Part(parts.REFERENCE)]
        return
    assert {part.environment["NANONET_CPU_ISA"] for part in found} == set(built["isa_supported"])
    assert [part.public for part in found] == [False] * (len(found) - 1) + [True]


@pytest.mark.skipif(cpp.load() is not None, reason="nanonet._C was not built")
def test_an_instruction_set_that_cannot_be_had_fails() -> None:
    failed = parts.run(Part("C++ avx1024", "cpu", {"NANONET_CPU_ISA": "avx1024"}))
    assert not failed.passed and not failed.began and "expected one of baseline" in failed.rows[-1].failures[0]


def test_rows_are_json() -> None:
    json.dumps([row.__dict__ for row in result("C++ avx2").rows])
