"""The build of nanonet._C and nanonet._C_cuda: CMake and ninja do it, CMakeLists.txt says how. Metadata is in
pyproject.toml.

_C_cuda is built where torch has CUDA and nvcc is found. The environment variable NANONET_CUDA=0 leaves it out,
NANONET_CUDA=1 builds it whatever torch is. NANONET_CUDA_ARCHES (such as 90a, or 80;90a) chooses the architectures,
CUDACXX names another nvcc. NANONET_BUILD_DIR is a folder that keeps the compiled files from one build to the next.
NANONET_SANITIZE=1 builds for AddressSanitizer and UndefinedBehaviorSanitizer."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def find_compiler() -> str | None:
    """Path of a C++ compiler."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, candidates)), None)


def check_torch() -> None:
    """End a build that would fail, in its first line: an isolated build sees no torch."""
    builds = {"dist_info", "bdist_wheel", "editable_wheel"} & set(sys.argv)
    if builds and find_compiler() and not (importlib.util.find_spec("torch") and importlib.util.find_spec("pybind11")):
        sys.exit(
            "nanonet is built against the torch that is installed: run `pip install torch setuptools wheel cmake ninja"
            " pybind11`, then `pip install --no-build-isolation` with nanonet"
        )


def wants_cuda() -> bool:
    """Whether _C_cuda is to be built: asked for, or torch has CUDA and nvcc is here."""
    choice = os.environ.get("NANONET_CUDA")
    if choice is not None:
        return choice != "0"
    import torch

    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if torch.version.cuda is not None and nvcc is None:
        print("nanonet: torch has CUDA but nvcc is not found: installing without nanonet._C_cuda")
    return torch.version.cuda is not None and nvcc is not None


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        compiler = find_compiler()
        if compiler is None:
            print(
                "nanonet: no C++ compiler found (set CXX): installing without nanonet._C, the reference serves the CPU"
            )
            return
        import pybind11
        from torch.utils.cpp_extension import include_paths, library_paths

        module = ext.name.rpartition(".")[2]
        cuda = module == "_C_cuda"
        if cuda and not wants_cuda():
            return
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(os.environ.get("NANONET_BUILD_DIR", self.build_temp), module).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DNANONET_MODULE=ON",
            f"-DNANONET_CUDA={'ON' if cuda else 'OFF'}",
            f"-DNANONET_SANITIZE={'ON' if os.environ.get('NANONET_SANITIZE') == '1' else 'OFF'}",
            f"-DCMAKE_CXX_COMPILER={compiler}",
            f"-DNANONET_VERSION={self.distribution.get_version()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DTORCH_INCLUDE_DIRS={';'.join(include_paths())}",
            f"-DTORCH_LIBRARY_DIRS={';'.join(library_paths())}",
        ]  # fmt: skip
        if arches := os.environ.get("NANONET_CUDA_ARCHES"):
            configure.append(f"-DNANONET_CUDA_ARCHES={arches}")
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", module], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / target.name, target)


check_torch()
setup(
    packages=[*find_packages(include=["nanonet", "nanonet.*"]), "nanonet.kernels", "nanonet.benchmarks"],
    package_dir={"nanonet.kernels": "kernels", "nanonet.benchmarks": "benchmarks"},
    # optional: without a compiler there is no file to copy; a compiler that fails still ends the build
    ext_modules=[Extension(name, sources=[], optional=True) for name in ("nanonet._C", "nanonet._C_cuda")],
    cmdclass={"build_ext": CMakeBuild},
)
