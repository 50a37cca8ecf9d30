"""The parts of the check, each in a process of its own with a time limit: one that hangs or dies is a failed line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nanonet.backends import MISSING, cpp, gate

LIMIT_S = 120  # of one step, in which Triton compiles some twenty kernels
TOTAL_LIMIT_S = 600  # of a part
REFERENCE = "reference"


@dataclass(frozen=True)
class Part:
    """Kernels and the device on which they are judged; `public`: with the public functions and the linear layer."""

    kernels: str
    device: str = "cpu"
    environment: Mapping[str, str] = field(default_factory=dict)
    public: bool = True

    @property
    def name(self) -> str:
        return f"{self.kernels} on {self.device}"


@dataclass(frozen=True)
class Row:
    """One line of the table; `worst`: the largest error as a share of its bar, None where it is infinite."""

    kernels: str
    device: str
    op: str
    dtype: str
    checks: int
    worst: float | None
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a part found. `began`: it came as far as its first step, so that a failure is the kernels'."""

    part: Part
    rows: tuple[Row, ...]
    began: bool
    seconds: float

    @property
    def passed(self) -> bool:
        return bool(self.rows) and not any(row.failures for row in self.rows)


def cpu_parts() -> list[Part]:
    """Every instruction set that this CPU has, the one in use last."""
    built = cpp.build_info()
    if not built:
        return [Part(REFERENCE)]
    used = built["isa_in_use"]
    names = [*(isa for isa in built["isa_supported"] if isa != used), used]
    return [Part(f"C++ {isa}", "cpu", {"NANONET_CPU_ISA": isa}, isa == used) for isa in names]


def gpu_parts(index: int) -> list[Part]:
    """The kernels that this installation has for a GPU; the reference where it has none."""
    device = f"cuda:{index}"
    there = [name for name, missing in ((gate.CUDA, "CUDA C++"), (gate.TRITON, "CUDA")) if missing not in MISSING]
    return [Part(name, device) for name in there] or [Part(REFERENCE, device)]


def gpus() -> list[int]:
    """One device of each kind."""
    kinds: dict[str, int] = {}
    for index in range(torch.cuda.device_count()):
        kinds.setdefault(json.dumps(gate.identity(index)), index)
    return list(kinds.values())


def run(part: Part, limit_s: float = LIMIT_S) -> Result:
    """Judge a part in a process of its own."""
    words = [part.kernels, part.device, "public" if part.public else "ops"]
    # -P: no module of the working directory stands in for one of ours
    command = [sys.executable, "-P", "-m", "nanonet.installation.suite", *words]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", **part.environment}
    return run_command(part, command, environment, limit_s)


def run_command(part: Part, command: Sequence[str], environment: Mapping[str, str], limit_s: float) -> Result:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nanonet-check-") as folder:
        # files, not pipes: a process that hangs in a driver may outlive SIGKILL, and a pipe would wait for it
        said, told = Path(folder, "out"), Path(folder, "err")
        with said.open("wb") as out, told.open("wb") as err:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
            )
        try:
            hung = _wait(child, said, limit_s)
        finally:
            _kill(child)
        lines, errors = _lines(said), told.read_text(errors="replace").strip().splitlines()
    rows = [Row(part.kernels, part.device, **(r | {"failures": tuple(r["failures"])})) for r in lines if "op" in r]
    steps = [line["step"] for line in lines if "step" in line]
    at = f"at {steps[-1]}" if steps else "before its first step"
    ended = ""
    if hung:
        ended = f"{at}: no answer in {hung:.0f} s, stopped"
    elif child.returncode:
        ended = f"{at}: {_how(child.returncode)}{f': {errors[-1][:200]}' if errors else ''}"
    elif not steps or steps[-1]:
        ended = f"{at}: ended without a word"
    if ended:
        rows.append(Row(part.kernels, part.device, "process", "", 1, None, (ended,)))
    return Result(part, tuple(rows), bool(steps), time.monotonic() - began)


def _wait(child: subprocess.Popen[bytes], said: Path, limit_s: float) -> float:
    """Wait for the end; the time after which it counts as hung, else 0. Every step has `limit_s`."""
    start = last = time.monotonic()
    size = 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.05)
            return 0.0
        now, length = time.monotonic(), said.stat().st_size
        if length != size:
            size, last = length, now
        if now - last > limit_s:
            return limit_s
        if now - start > TOTAL_LIMIT_S:
            return TOTAL_LIMIT_S


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # in a driver's hands: not ours to wait for
            child.wait(5)


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole JSON lines; what a library printed between them is passed over."""
    found = []
    for line in file.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict) and ("op" in value or "step" in value):
                found.append(value)
    return found


def check(parts: Sequence[Part], say: Callable[[str], None], limit_s: float = LIMIT_S) -> list[Result]:
    """Every part in turn; `say` is told how each ended."""
    results = []
    for part in parts:
        results.append(run(part, limit_s))
        good, seconds = results[-1].passed, results[-1].seconds
        say(f"check of {part.name}: {'passed' if good else 'FAILED'} in {seconds:.0f} s")
    return results


def keep(results: Sequence[Result], say: Callable[[str], None]) -> None:
    """Record which kernels passed on which GPU: from then on they serve it."""
    for device in dict.fromkeys(r.part.device for r in results if r.part.device != "cpu"):
        found = [r for r in results if r.part.device == device and r.part.kernels in gate.KERNELS and r.began]
        if not found:
            continue
        try:
            gate.write_record(gate.identity(int(device[5:])), {r.part.kernels: r.passed for r in found})
        except (OSError, RuntimeError) as error:  # the second: no home folder
            say(f"the result cannot be kept ({error}): set XDG_CACHE_HOME to a folder that can be written")
    gate.forget()


def ensure_checked(say: Callable[[str], None]) -> None:
    """Check the GPUs of which nothing is known yet, as `nanonet check --device cuda` does; at most once."""
    if not torch.cuda.is_available() or gate.forced() is not None:
        return
    for index in gpus():
        key, parts = gate.identity(index), gpu_parts(index)
        if parts[0].kernels == REFERENCE or gate.read_record(key) is not None:
            continue
        say(f"first run on {key['gpu']}: checking its kernels, a minute or more (`{gate.COMMAND}`)")
        results = check(parts, say)
        keep(results, say)
        for line in (failure for r in results for row in r.rows for failure in row.failures[:1]):
            say(f"{line}; plain torch serves in place of these kernels")
            break
