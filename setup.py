"""The build of nanonet._C: CMake and ninja do it, CMakeLists.txt says how. Metadata is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
        compiler = next(filter(None, map(shutil.which, candidates)), None)
        if compiler is None:
            print(
                "nanonet: no C++ compiler found (set CXX): installing without nanonet._C, the reference serves the CPU"
            )
            return
        try:
            import pybind11
            from torch.utils.cpp_extension import include_paths, library_paths
        except ImportError as error:
            raise SystemExit(
                f"nanonet: {error}. Install torch and pybind11, then build with --no-build-isolation"
            ) from None
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DNANONET_MODULE=ON",
            f"-DCMAKE_CXX_COMPILER={compiler}",
            f"-DNANONET_VERSION={self.distribution.get_version()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DTORCH_INCLUDE_DIRS={';'.join(include_paths())}",
            f"-DTORCH_LIBRARY_DIRS={';'.join(library_paths())}",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", "_C"], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / target.name, target)


setup(
    packages=[*find_packages(include=["nanonet", "nanonet.*"]), "nanonet.kernels", "nanonet.benchmarks"],
    package_dir={"nanonet.kernels": "kernels", "nanonet.benchmarks": "benchmarks"},
    # optional: without a compiler there is no file to copy; a compiler that fails still ends the build
    ext_modules=[Extension("nanonet._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
