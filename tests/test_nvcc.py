"""The CUDA files without a GPU: nvcc compiles and links them, nothing spills, and rows travel 16 bytes at a time.

That nothing spills is the build's own condition (CMakeLists.txt): a file that spilled would not have compiled. What was
built stays in build/nvcc, so only what changed is compiled again.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
ARCHES = ("sm_80", "sm_90a", "sm_100a")
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # where pip puts cmake and ninja
CMAKE, NINJA = shutil.which("cmake", path=PATH), shutil.which("ninja", path=PATH)

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="nvcc is not installed"),
    pytest.mark.skipif(CMAKE is None or NINJA is None, reason="cmake or ninja is not installed"),
]


def cuobjdump(*arguments):
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton", reason="neither cuobjdump nor triton, which brings one, is installed")
        tool = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    return subprocess.run([tool, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module", params=[("sm_90a",), pytest.param(ARCHES, marks=pytest.mark.slow)], ids=["90a", "all"])
def arches(request):
    return request.param


@pytest.fixture(scope="module")
def built(arches):
    """The folder of the build: objects of these architectures, and the linked module."""
    pybind11 = pytest.importorskip("pybind11")
    from torch.utils.cpp_extension import include_paths, library_paths

    build = ROOT / "build" / ("nvcc" if arches == ARCHES else "nvcc-90a")
    configure = [
        CMAKE, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DNANONET_CUDA=ON",
        f"-DCMAKE_MAKE_PROGRAM={NINJA}",
        f"-DNANONET_CUDA_ARCHES={';'.join(arch.removeprefix('sm_') for arch in arches)}",
        f"-DCMAKE_CUDA_COMPILER={NVCC}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DTORCH_INCLUDE_DIRS={';'.join(include_paths())}",
        f"-DTORCH_LIBRARY_DIRS={';'.join(library_paths())}",
    ]  # fmt: skip
    for command in (configure, [CMAKE, "--build", str(build), "--target", "_C_cuda"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return build


def objects(built):
    found = {path.name.split(".")[0]: path for path in built.rglob("*.cu.o")}
    assert set(found) == {path.stem for path in (ROOT / "csrc/cuda").glob("*.cu")}
    return found


def usage(path):
    """(architecture, kernel, registers, stack, local) of every kernel of an object."""
    rows, arch = [], None
    for line in cuobjdump("-res-usage", path).splitlines():
        if found := re.search(r"arch = (sm_\w+)", line):
            arch = found[1]
        elif found := re.search(r"Function (\S+):", line):
            kernel = found[1]
        elif found := re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", line):
            rows.append((arch, kernel, *map(int, found.groups())))
    return rows


def test_every_file_has_every_architecture_and_spills_nothing(built, arches):
    for name, path in objects(built).items():
        rows = usage(path)
        assert {row[0] for row in rows} == set(arches), name
        assert not [row for row in rows if row[3] or row[4]], name


def test_the_module_is_linked_and_asks_torch_for_nothing_unstable(built, arches):
    (module,) = built.glob("_C_cuda.*.so")
    assert {row[0] for row in usage(module)} == set(arches)
    names = subprocess.run(["nm", "-D", "--undefined-only", "-C", module], check=True, capture_output=True, text=True)
    unstable = [line for line in names.stdout.splitlines() if re.search(r"\b(c10|at|torch::(?!stable))::", line)]
    assert not unstable, unstable


# into shared memory, from there, and out, for the architecture of an H200
@pytest.mark.parametrize("name", ["sweep", "chip", "cluster"])
def test_rows_travel_16_bytes_at_a_time(built, name):
    code = cuobjdump("-sass", "-arch", "sm_90a", objects(built)[name])
    kernels = [text for text in code.split("Function : ")[1:] if "distill_" in text.split("\n", 1)[0]]
    assert kernels
    for text in kernels:
        for instruction in (r"LDGSTS\S*\.128", r"LDS\.128", r"STG\.E\S*\.128"):
            assert re.search(instruction, text), f"{text.split()[0]}: no {instruction}"
