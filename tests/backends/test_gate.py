"""Who may serve a GPU: the record of `nanonet check`, or NANONET_GPU_KERNELS. The device is a made-up one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanonet import backends
from nanonet.backends import cuda, gate, triton
from nanonet.backends.gate import CUDA, KERNELS, TRITON

KEY = {"gpu": "NVIDIA X9", "driver": "1.2", "torch": "t", "nanonet": "n", "triton": "r", "kernels": "k"}


def fresh() -> None:
    gate.passed.cache_clear()
    gate._warned.cache_clear()


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str | None]]:
    """The identity of every device, which a test may change; an empty cache and a process that knows nothing."""
    found: dict[str, str | None] = dict(KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(gate.VARIABLE, raising=False)
    monkeypatch.setattr(gate, "identity", lambda index: dict(found))
    fresh()
    yield found
    fresh()


def test_nothing_serves_before_a_check_and_one_warning_names_it() -> None:
    with pytest.warns(UserWarning, match="not checked on NVIDIA X9.*nanonet check --device cuda") as told:
        for index in (0, 1, 0):
            assert not gate.serves(TRITON, index) and not gate.serves(CUDA, index)
    assert len(told) == 1


def test_what_passed_serves_and_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    path = gate.write_record(KEY, {TRITON: True, CUDA: False})
    read = []
    monkeypatch.setattr(gate, "read_record", lambda key, plain=gate.read_record: read.append(key) or plain(key))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [gate.serves(name, 0) for name in (TRITON, CUDA, TRITON, CUDA)] == [True, False, True, False]
    assert len(read) == 1
    assert "Triton passed, CUDA C++ FAILED: checked on NVIDIA X9 at 2" in gate.state(0)
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left


@pytest.mark.parametrize("part", KEY)
def test_a_check_holds_for_its_own_gpu_driver_and_versions_alone(part: str, key: dict[str, str | None]) -> None:
    gate.write_record(KEY, dict.fromkeys(KERNELS, True))
    key[part] = "another"
    assert gate.passed(0) == frozenset()
    key[part] = KEY[part]
    gate.forget()
    assert gate.passed(0) == KERNELS


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": 1, "when": "", "passed": ["Triton"], "failed": []}'])
def test_a_record_that_is_none_proves_nothing(text: str) -> None:
    path = gate.write_record(KEY, dict.fromkeys(KERNELS, True))
    path.write_text(text)
    assert gate.read_record(KEY) is None and gate.passed(0) == frozenset()


def test_a_record_of_wrong_types_or_another_key_under_its_name_proves_nothing() -> None:
    path = gate.write_record(KEY, dict.fromkeys(KERNELS, True))
    whole = path.read_text()
    for old, new in (("NVIDIA X9", "NVIDIA X8"), ('"passed": [', '"passed": [[], ')):
        path.write_text(whole.replace(old, new))
        assert gate.read_record(KEY) is None


def test_the_variable_decides_without_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value, wanted in (("1", KERNELS), ("0", frozenset())):
            monkeypatch.setenv(gate.VARIABLE, value)
            fresh()
            assert gate.passed(0) == wanted and gate.serves(TRITON, 0) == bool(wanted)
            assert gate.VARIABLE in gate.state(0)
    monkeypatch.setenv(gate.VARIABLE, "yes")
    with pytest.raises(ValueError, match="expected 1 .use the kernels unchecked. or 0 .never., got 'yes'"):
        backends.load()


def test_a_relative_cache_home_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gate.record_path(KEY).is_relative_to(tmp_path / ".cache" / "nanonet")


def test_the_reference_takes_the_calls_of_an_unchecked_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*triton.eager.OPS, "cohort_linear", "cohort_linear_backward"]
    monkeypatch.setattr(
        triton, "implementations", lambda: {name: lambda *_, name=name: f"kernel {name}" for name in names[:1]}
    )
    monkeypatch.setitem(triton.eager.OPS, names[0], lambda *_: "reference")
    (call,) = triton.gated().values()
    gpu = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1))
    with pytest.warns(UserWarning, match="not checked"):
        assert call(gpu, 1) == "reference"
    assert call([gpu], 1) == "reference"  # students apart
    gate.write_record(KEY, {TRITON: True})
    gate.forget()
    assert call(gpu, 1) == f"kernel {names[0]}"
    gate.write_record(KEY, {TRITON: False, CUDA: True})
    gate.forget()
    assert call(gpu, 1) == "reference"
    assert call(torch.ones(1), 1) == f"kernel {names[0]}"  # the interpreter's tensors lie on the CPU


def test_the_compiled_kernels_are_told_once_and_take_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    module = SimpleNamespace(serve=told.append)
    monkeypatch.setattr(cuda.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(cuda, "_SERVED", set())
    ops = SimpleNamespace(nanonet=SimpleNamespace(distill_terms=SimpleNamespace(default=lambda *_: "compiled")))
    monkeypatch.setattr(cuda, "torch", SimpleNamespace(ops=ops, _C=torch._C))
    call = cuda._decided("distill_terms", lambda *_: "passed on")
    gpu = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1))
    with pytest.warns(UserWarning, match="not checked"):
        assert call(gpu) == "passed on" and told == []
    gate.write_record(KEY, {CUDA: True})
    gate.forget()
    assert call(gpu) == "compiled" and told == [1]
    assert call(gpu) == "passed on" and told == [1]  # one that they passed on, such as float64


def test_a_process_that_checks_has_one_kind_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_only", [])
    gate.only(TRITON)
    assert gate.passed(0) == {TRITON}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(backends, "registered", lambda op, key: True)
    assert backends.served_by("cohort_linear", "CUDA") == "kernel"
    gate.only(CUDA)
    assert backends.served_by("cohort_linear", "CUDA") == "reference"
    assert backends.served_by("distill_loss", "CUDA") == "kernel"
