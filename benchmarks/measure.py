"""Measurement: interleaved runs, percentiles, peak memory, and a memcpy of the same run for comparison."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import importlib.util
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nanonet

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def fresh_memory() -> None:
    """Make the allocator return large freed buffers to the system at once, so that each new one costs its page faults,
    as a new gradient at every step does. No effect without glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except OSError:
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 17)
    mallopt(M_TRIM_THRESHOLD, 1 << 17)


def times_ms(runs: dict[str, Callable[[], Any]], seconds: float = 2.0, most: int = 400) -> dict[str, np.ndarray]:
    """Times [ms] of every run, interleaved (A B C A B C ...), so that a slower machine slows all of them."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for run in runs.values():
        run()
        run()
    wait()
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < end and len(next(iter(times.values()))) < most:
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            wait()
            times[name].append((time.perf_counter() - began) * 1e3)
    return {name: np.asarray(values) for name, values in times.items()}


def small_times_ms(runs: dict[str, Callable[[], Any]], rounds: int = 40, calls: int = 200) -> dict[str, np.ndarray]:
    """As `times_ms`, for calls of microseconds: each time is the mean of `calls` calls in a row."""

    def many(run: Callable[[], Any]) -> Callable[[], None]:
        def repeat() -> None:
            for _ in range(calls):
                run()

        return repeat

    times = times_ms({name: many(run) for name, run in runs.items()}, seconds=60, most=rounds)
    return {name: values / calls for name, values in times.items()}


def each_ms(
    runs: dict[str, Callable[[], Any]], clock: Callable[[dict], dict[str, np.ndarray]], optional: Collection[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Times [ms] of every run alone, as on a GPU, where the buffers of all do not fit at once; each
    is handed out before the next begins, so that what is cut off keeps what it has.

    One of the `optional` that does not run (too little memory, a library of another version) is named on standard
    error and left out; any other ends the suite.
    """
    for name, run in runs.items():
        try:
            values = clock({name: run})[name]
        except Exception as error:
            if name not in optional:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"{name}: not timed ({type(error).__name__}: {reason:.200})", file=sys.stderr)
        else:
            yield name, values
        torch.cuda.empty_cache()


def graphed(run: Callable[[], Any], calls: int) -> Callable[[], Any]:
    """A CUDA graph of so many calls: a replay takes the GPU's own time, without the host's for each call."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        run()
    side.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph.replay


def graph_ms(runs: dict[str, Callable[[], Any]], calls: int = 20) -> dict[str, np.ndarray]:
    """Times [ms] of a call within a CUDA graph of so many: the GPU's own."""
    times = small_times_ms({name: graphed(run, calls) for name, run in runs.items()}, rounds=10, calls=5)
    return {name: values / calls for name, values in times.items()}


def peak_mb(run: Callable[[], Any], device: str = "cpu", warm: bool = True) -> float:
    """Peak memory of one call beyond the memory allocated before it [MB]: the high-water mark of the resident set.

    Allocated before are the inputs and, after a `warm` call, its gradient.
    """
    if warm:
        run()
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    gc.collect()
    _trim_heap()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux: the high-water mark cannot be reset
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _trim_heap() -> None:
    """Return freed memory to the system: a call that reuses it would seem to need none."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def copy_of(size_bytes: int, device: str = "cpu") -> Callable[[], Any]:
    """A copy that reads and writes `size_bytes` in all."""
    source = torch.ones(max(size_bytes // 8, 1), dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def record(
    op: str, shape: dict[str, int], dtype: str, device: str, implementation: str, times: np.ndarray, **more: Any
) -> dict[str, Any]:
    """One line of results: the same keys for every benchmark, None where one has no meaning, and its own keys."""
    p20, p50, p80 = (float(np.sort(times)[int(len(times) * q)]) for q in (0.2, 0.5, 0.8))
    line = {
        "op": op,
        "shape": shape,
        "dtype": dtype,
        "device": device_name(device),
        "implementation": implementation,
        "p20_ms": p20,
        "p50_ms": p50,
        "p80_ms": p80,
        "bytes_floor": None,
        "floor_fraction": None,
        "peak_mem_mb": None,
        "error": None,
        "reference_error": None,
        "versions": {"torch": torch.__version__, "nanonet": nanonet.__version__} | _gpu_versions(device),
        "commit": commit(),
    }
    return {**line, **more}


def _gpu_versions(device: str) -> dict[str, str]:
    if device == "cpu":
        return {}
    triton = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else ""
    return {"cuda": torch.version.cuda or "", "triton": triton}


def commit() -> str:
    """The commit of the tree that is measured, marked where more than results has changed; without git or
    a repository what NANONET_COMMIT says."""

    def git(*words: str) -> str:
        return subprocess.check_output(["git", *words], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True)

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/results")
        return git("describe", "--always").strip() + "-dirty" * bool(changed)
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return os.environ.get("NANONET_COMMIT", "")


def device_name(device: str = "cpu") -> str:
    """Cores in use and the processor's name, or the GPU's name."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = os.uname().machine
    return f"{torch.get_num_threads()} x {name}"
