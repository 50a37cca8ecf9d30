"""Every Triton kernel compiled ahead for sm_80, sm_90 and sm_100, with no GPU: no spills, and the committed table.

The float32 launches reach every kernel but one on sm_90 and always run; the rest takes minutes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "triton.json"


SOME, EVERY = ("fp32", [90]), ("", [80, 90, 100])  # a part of the cases' names, and architectures


@pytest.fixture(scope="module", params=[SOME, pytest.param(EVERY, marks=pytest.mark.slow)], ids=["some", "every"])
def chosen(request) -> tuple[str, list[int]]:
    return request.param


@pytest.fixture(scope="module")
def compiled(chosen: tuple[str, list[int]], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """In a process of its own, where the kernels are not interpreted."""
    part, architectures = chosen
    file = tmp_path_factory.mktemp("triton") / "triton.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "nanonet.kernels.compile", part, "--write", str(file)]
    command += ["--architectures", *map(str, architectures)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(file.read_text())[triton.__version__]


def test_no_kernel_spills(compiled):
    spilled = {
        f"{name}, {architecture}": used["spilled"]
        for name, row in compiled.items()
        for architecture, used in row.items()
        if used["spilled"]
    }
    assert len(compiled) > 20 and not spilled


GLOBALS = """
from triton.runtime.jit import JITFunction
from nanonet.kernels import cohort_linear, distill, distill_rows, distill_tiles, divergences
from nanonet.kernels import low_rank, reduction, rowwise, topk_rows
loss = distill, distill_rows, distill_tiles, divergences, reduction, rowwise, topk_rows
for module in (cohort_linear, low_rank, *loss):
    for kernel in filter(lambda one: isinstance(one, JITFunction), vars(module).values()):
        assert kernel.cache_key
        for (name, _), (value, scope) in kernel.used_global_vals.items():
            assert scope[name] == value, f"{kernel.__name__}: {name} is {value}"
        print(kernel.__name__)
"""


def test_no_kernel_reads_a_global_that_differs_from_itself():
    """Triton compares globals with what they were at every launch, and refuses: a global NaN fails at the first."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", GLOBALS], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"distill_rows_kernel", "distill_tiles_kernel", "cohort_linear_kernel"} <= set(done.stdout.split())


def test_registers_and_shared_memory_are_as_committed(compiled, chosen):
    tables = json.loads(TABLE.read_text())
    if triton.__version__ not in tables:
        pytest.skip(f"{TABLE.name} is of triton {', '.join(tables)}, this is {triton.__version__}")
    part, architectures = chosen
    committed = {
        name: {f"sm_{architecture}": row[f"sm_{architecture}"] for architecture in architectures}
        for name, row in tables[triton.__version__].items()
        if part in name
    }
    assert compiled == committed, f"python -m nanonet.kernels.compile --write {TABLE}"
