"""Whether our kernels may serve a GPU: by default only where `nanonet check` has passed there.

What has passed is kept in the user's cache, one file for each GPU model, driver, versions and build of the kernels.
NANONET_GPU_KERNELS=1 uses the kernels unchecked, 0 never; by default the record decides, once per process and device.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import warnings
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nanonet.files import write
from nanonet.versions import versions

CUDA, TRITON = "CUDA C++", "Triton"
KERNELS = frozenset((CUDA, TRITON))
VARIABLE = "NANONET_GPU_KERNELS"
COMMAND = "nanonet check --device cuda"
_only: list[frozenset[str]] = []  # of a process that checks


def forced() -> frozenset[str] | None:
    """The kernels that NANONET_GPU_KERNELS allows; None where it is not set.

    Raises:
        ValueError: another value than 0 or 1.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE}: expected 1 (use the kernels unchecked) or 0 (never), got {value!r}")
    return {"": None, "0": frozenset(), "1": KERNELS}[value]  # type: ignore[return-value]


@cache
def passed(index: int) -> frozenset[str]:
    """The kernels that may serve this CUDA device."""
    if _only:
        return _only[0]
    by_variable = forced()
    if by_variable is not None:
        return by_variable
    record = read_record(identity(index))
    return frozenset(record["passed"]) & KERNELS if record else frozenset()


def serves(kernels: str, index: int) -> bool:
    """`kernels in passed(index)`; where nothing has passed a warning says so, once per process."""
    found = passed(index)
    if not found and not _only and forced() is None:
        _warn(index)
    return kernels in found


@cache
def _warned() -> list[int]:
    return []


def _warn(index: int) -> None:
    if not _warned():
        _warned().append(index)
        warnings.warn(f"nanonet: {state(index)}; plain torch serves the GPU until then", stacklevel=4)


def state(index: int) -> str:
    """What is known of the kernels on this CUDA device, in words."""
    by_variable, key = forced(), identity(index)
    if by_variable is not None:
        return f"kernels {'in use unchecked' if by_variable else 'off'} on {key['gpu']} by {VARIABLE}"
    record = read_record(key)
    if record is None:
        return f"kernels not checked on {key['gpu']}, driver {key['driver']}: run `{COMMAND}`"
    names = [name for name in (CUDA, TRITON) if name in record["passed"]]
    failed = [name for name in (CUDA, TRITON) if name in record["failed"]]
    parts = [f"{' and '.join(some)} {what}" for some, what in ((names, "passed"), (failed, "FAILED")) if some]
    line = f"{', '.join(parts) or 'no kernels'}: checked on {key['gpu']} at {record['when']}"
    return line if names else f"{line}; see `{COMMAND}`"


def only(kernels: str) -> None:
    """Let these kernels alone serve every GPU of this process, which checks them."""
    _only[:] = [frozenset((kernels,))]
    passed.cache_clear()


def forget() -> None:
    """Decide anew: a check has ended."""
    passed.cache_clear()


def identity(index: int) -> dict[str, str | None]:
    """What a check holds for: the GPU model, the driver, the versions, the build of the kernels."""
    installed = versions()
    return {
        "gpu": torch.cuda.get_device_name(index),
        "driver": _driver(),
        "torch": torch.__version__,
        "nanonet": installed["nanonet"],
        "triton": installed["triton"],
        "kernels": _build(),
    }


def _driver() -> str:
    for file in (Path("/sys/module/nvidia/version"), Path("/proc/driver/nvidia/version")):
        try:
            found = re.search(r"\d+\.\d[\d.]*", file.read_text())
        except OSError:
            continue
        if found:
            return found[0]
    return f"CUDA {torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]  # WSL has neither file


@cache
def _build() -> str:
    """A hash of the sources of the Triton kernels and of the compiled CUDA module."""
    digest = hashlib.sha256()
    kernels, compiled = (importlib.util.find_spec(f"nanonet.{name}") for name in ("kernels", "_C_cuda"))
    folders = kernels.submodule_search_locations if kernels else None
    files = sorted(Path(folders[0]).glob("*.py")) if folders else []
    files += [Path(compiled.origin)] if compiled and compiled.origin else []
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def record_path(key: dict[str, str | None]) -> Path:
    """The file of this key, in $XDG_CACHE_HOME/nanonet or ~/.cache/nanonet."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (home if home.is_absolute() else Path.home() / ".cache") / "nanonet" / "gpu-checks"
    name = re.sub(r"\W+", "-", key["gpu"] or "gpu")
    return folder / f"{name}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"


def read_record(key: dict[str, str | None]) -> dict[str, Any] | None:
    """{passed, failed: names of kernels, when} of this key; None where there is none that can be read."""
    try:
        found = json.loads(record_path(key).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # the last: no home folder
        return None
    whole = isinstance(found, dict) and found.get("key") == key and isinstance(found.get("when"), str)
    lists = whole and all(
        isinstance(found.get(part), list) and all(isinstance(name, str) for name in found[part])
        for part in ("passed", "failed")
    )
    return found if lists else None


def write_record(key: dict[str, str | None], results: dict[str, bool]) -> Path:
    """Keep which kernels passed; atomically, the file's path.

    Raises:
        OSError: the cache cannot be written.
    """
    path = record_path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "key": key,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": [name for name, good in results.items() if good],
        "failed": [name for name, good in results.items() if not good],
    }
    write(path, json.dumps(record, indent=2) + "\n")
    return path
