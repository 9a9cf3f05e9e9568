# make demo and make test each work as the first command on a fresh clone.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# For where torch does not bring Triton itself, as its builds without CUDA do not.
TRITON ?= triton==3.7.1
# More arguments for pytest, the benchmarks, genimg demo or genimg check.
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
# The one list of them is pyproject.toml's.
BUILD_TOOLS = $(shell sed -n 's/^requires = \[\(.*\)\]$$/\1/p' pyproject.toml | tr ',' ' ')
SOURCES := CMakeLists.txt setup.py $(wildcard cmake/* csrc/* csrc/*/* kernels/cpu/* kernels/cpu/*/* \
	kernels/cuda/* kernels/cuda/*/*)
FORMATTED := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h \
	kernels/cpu/*.cpp kernels/cpu/*.h kernels/cpu/*/*.cpp kernels/cpu/*/*.h kernels/cuda/*.cu \
	kernels/cuda/*.h kernels/cuda/*/*.h kernels/cuda/*/*.cu tests/kernels/*.cpp \
	tests/emulator/kernels/*.cu tests/emulator/kernels/*.cpp tests/emulator/kernels/bindings/*.cpp \
	tests/emulator/kernels/bindings/*.h tests/emulator/kernels/bindings/*/*/*.h \
	tests/emulator/src/*.h tests/emulator/src/*.cpp)
NVCC_PACKAGES := $(foreach p,cuda-nvcc cuda-crt nvvm cuda-cccl cuda-runtime,"nvidia-$(p)==13.0.*")

# Tests in as many processes as tests/conftest.py says.
PARALLEL := --numprocesses auto --dist worksteal

# PyPI's build of torch has CUDA; a folder of wheels or another index may have one without.
CUDA_VENV := build/cuda-venv
CUDA_PY := $(CUDA_VENV)/bin/python
CUDA_PIP = PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= PIP_EXTRA_INDEX_URL= $(CUDA_PY) -m pip \
	--disable-pip-version-check --no-input --no-cache-dir install -q

# genimg as it is imported, with genimg.kernels in its place: what mypy and editors read.
TYPED := build/typed/genimg

NEEDS_GPU := import sys, torch; torch.cuda.is_available() or sys.exit('torch sees no GPU here')
GPU_NAME := import torch; print('-'.join(torch.cuda.get_device_name().lower().split()))

# A benchmark that fails stands in the report; the exit code tells.
define run_bench
mkdir -p "$$(dirname $(1))" && rm -f $(1); failed=0; \
$(PY) -m pytest benchmarks -c benchmarks/pytest.ini --rootdir=. --benchmark-json=$(1) $(ARGS) || \
	failed=$$?; \
$(PY) benchmarks/report.py $(1) || failed=$$?; exit $$failed
endef

.DELETE_ON_ERROR:
.PHONY: help setup demo test test-gpu bench bench-gpu check format lint types check-cuda
.PHONY: check-cuda-build
.PHONY: check-barriers check-mutants check-machines check-triton sanitize sanitize-cuda dist clean

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*##/\1#/p' Makefile | awk -F'# ' '{printf "make %-16s %s\n", $$1, $$2}'

setup: $(VENV)/.built  ## .venv with torch, the build tools, and genimg built from source

demo: setup  ## train a GAN and a VAE on digits, and show the speed and error of every op
	$(BIN)/genimg demo $(ARGS)

test: setup  ## run the tests
	$(PY) -m pytest $(PARALLEL) $(ARGS)

test-gpu: setup  ## run the tests of the ops and kernels on this machine's GPU, and compute-sanitizer
	@$(PY) -c "$(NEEDS_GPU)"
	$(PY) -m pytest tests/ops tests/kernels $(ARGS)
	$(PY) benchmarks/gpu_check.py --tools

bench: setup  ## time every op beside PyTorch, into benchmarks/results/local.json
	@$(call run_bench,benchmarks/results/local.json)

bench-gpu: setup  ## time every op on this machine's GPU, into benchmarks/results/<its name>/
	@$(PY) -c "$(NEEDS_GPU)"
	@folder=benchmarks/results/$$($(PY) -c "$(GPU_NAME)") && \
	$(call run_bench,$$folder/results.json)

check: setup  ## run every case of every op on every backend that this machine has
	$(BIN)/genimg check $(ARGS)

format: setup  ## format the Python and C++ sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

lint: setup  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

types:  ## mypy alone; it needs .venv, and builds nothing
	@rm -rf $(TYPED) && mkdir -p $(TYPED)
	@ln -s $(addprefix $(CURDIR)/,$(wildcard genimg/*.py genimg/*.pyi genimg/*/) kernels) $(TYPED)
	$(BIN)/mypy

check-cuda: setup  ## compile the CUDA kernels and their bindings; needs no GPU and no CUDA torch
	@command -v nvcc >/dev/null || $(PIP) install -q $(NVCC_PACKAGES)
	$(BIN)/cmake -S . -B build/check-cuda -GNinja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DPython_EXECUTABLE=$(abspath $(PY)) -DGENIMG_COMPILE_ONLY=ON -DGENIMG_GATE=ON \
		-DGENIMG_WERROR=ON
	$(BIN)/cmake --build build/check-cuda
	$(PY) tests/kernels/nvcc_gate.py report build/check-cuda

# The whole of it, as a user's: torch with CUDA, linked, installed, imported. Tests run elsewhere than
# here, where Python would import this folder's genimg; two ops', since the CPU kernels are those that
# make test and make sanitize run in full.
check-cuda-build: $(CUDA_VENV)/.installed  ## the same, built with a CUDA torch (5 GB), run on the CPU
	GENIMG_BUILD=cuda CMAKE_ARGS="-DGENIMG_GATE=ON -DGENIMG_WERROR=ON -DGENIMG_CPU_LEVEL=native" \
		$(CUDA_PIP) --no-build-isolation --no-deps .
	$(CUDA_PY) tests/kernels/nvcc_gate.py report build/cuda-*-torch*
	cd $(CUDA_VENV) && bin/genimg info && \
	bin/python -c 'import sys; from genimg import _native; sys.exit(_native.why_not_cuda())' && \
	TRITON_INTERPRET=0 bin/python -m pytest -c $(CURDIR)/pyproject.toml -q -p no:cacheprovider \
		$(PARALLEL) --rootdir=$(CURDIR) \
		$(addprefix $(CURDIR)/tests/,test_cuda_build.py test_info.py test_backends.py \
		ops/test_conv2d.py ops/test_leaky_relu.py) $(ARGS)

check-barriers: setup  ## remove each barrier from each CUDA kernel: a test must fail every time
	OMP_NUM_THREADS=1 $(PY) tests/kernels/check_barriers.py $(ARGS)

check-mutants: setup  ## change each sign, index and border of the CPU convolutions: a case must fail
	$(PY) tests/kernels/check_mutants.py $(ARGS)

check-machines: setup  ## check the CPU kernels on every machine that this one can pretend to be
	$(PY) tests/check_machines.py $(ARGS)

check-triton: setup  ## compile the Triton kernels for GPUs that are not here, under three Tritons
	$(PY) tests/kernels/check_triton.py $(ARGS)

# libstdc++ as well: without it the sanitizer ends the process at the first C++ exception. Without
# test_contract, where torch.compile's own processes would run under it and take all memory. And
# without Triton, of which there is nothing to see here. And of the instruction-set levels the one
# alone that runs here.
sanitize:  ## run the tests of the ops under AddressSanitizer and UBSan
	CMAKE_ARGS="-DGENIMG_SANITIZE=address,undefined -DGENIMG_CPU_LEVEL=native" $(MAKE) setup
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc TRITON_INTERPRET=0 \
		$(PY) -m pytest $(PARALLEL) tests/ops --ignore=tests/ops/test_contract.py $(ARGS)

sanitize-cuda: setup  ## run the emulated CUDA kernels under AddressSanitizer and UBSan
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc $(PY) -m pytest --sanitized $(PARALLEL) \
		tests/kernels/test_cuda_emulated.py tests/emulator/tests/test_simt.py \
		tests/emulator/tests/test_simt_hopper.py tests/kernels/test_cuda_contracts.py $(ARGS)

dist: setup  ## sdist and wheel, into dist/
	$(PY) -m build --no-isolation

clean:  ## remove what was built; .venv and your runs stay
	rm -rf build dist genimg.egg-info genimg/_build.json genimg/_C.*.so $(VENV)/.built
	rm -rf .pytest_cache .ruff_cache .mypy_cache .benchmarks

# What the environment and the build were asked to be, rewritten only when that changes.
$(VENV)/.asked: FORCE
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "genimg needs Python 3.10")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo '$(TORCH) $(TRITON)' | cmp -s - $@ || echo '$(TORCH) $(TRITON)' > $@
FORCE:

$(VENV)/.build-asked: $(VENV)/.asked FORCE
	@asked='$(GENIMG_BUILD) $(TORCH_CUDA_ARCH_LIST) $(DEBUG) $(CMAKE_ARGS) $(CXX)'; \
		echo "$$asked" | cmp -s - $@ || echo "$$asked" > $@

$(VENV)/.installed: $(VENV)/.asked pyproject.toml Makefile
	$(PIP) install "$(TORCH)"
	$(PIP) install -q $(BUILD_TOOLS) wheel
	$(PY) -c 'import triton' 2>/dev/null || test "$$(uname -s)" != Linux || $(PIP) install "$(TRITON)"
	$(PIP) install -q --no-build-isolation -e '.[dev]'
	@touch $@

$(CUDA_VENV)/.installed: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "genimg needs Python 3.10")'
	@test -x $(CUDA_PY) || $(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_PIP) --no-compile "$(TORCH)" $(BUILD_TOOLS) wheel numpy "pytest>=8" "pytest-xdist>=3.6" \
		"pytest-benchmark>=5"
	@nvcc --version 2>/dev/null | grep -q "release 13\." || $(CUDA_PIP) $(NVCC_PACKAGES)
	@touch $@

# Compiles what has changed since, and says what there is.
$(VENV)/.built: $(VENV)/.installed $(VENV)/.build-asked $(SOURCES)
	$(PY) setup.py -q build_ext --inplace
	@touch $@
