# One command each; every target makes what it needs first. `make help` lists them.
#
# PYTHON  the interpreter of the virtual environments
# TORCH   what pip installs as torch; on Linux the package index gives the build for CUDA, which runs on a CPU, too
PYTHON ?= python3
TORCH ?= torch==2.13.0
CUDA_TORCH ?= torch==2.14.1

VENV := .venv
CUDA_VENV := .venv-cuda
DEMO := runs/demo
BIN := $(CURDIR)/$(VENV)/bin
CUDA_BIN := $(CURDIR)/$(CUDA_VENV)/bin

BUILD_FILES := CMakeLists.txt setup.py pyproject.toml $(wildcard cmake/* build_backend/*.py requirements/build.txt)
SOURCES := $(shell find csrc -type f)
CPP_TESTS := $(shell find cpp_tests -type f)
CPP_FORMATTED := $(shell find csrc cpp_tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench cuda-build gpu-check install-check clean

help:
	@echo "make demo           trains on synthetic histories and shows metrics, floors and recommendations"
	@echo "make test           every test: pytest, then ctest"
	@echo "make lint           ruff, mypy, clang-format"
	@echo "make bench          times kernel and FFT operators on this machine; measures what the Legendre scan and the loss promise"
	@echo "make cuda-build     compiles and imports the CUDA extension in an environment of its own, no GPU needed"
	@echo "make gpu-check      on a GPU machine: build, tests, sanitizers and timings with its own torch, no network"
	@echo "make install-check  pip install in every situation that the build supports"
	@echo "make clean          removes environments and builds"

# --- environments: a stamp file in each says that it is complete --------------------------------------------------

# torch comes first: the extension is compiled against it.
$(VENV)/.torch-installed: requirements/build.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH) -r requirements/build.txt
	touch $@

$(VENV)/.installed: $(VENV)/.torch-installed $(BUILD_FILES) $(SOURCES)
	$(BIN)/pip install --verbose --no-build-isolation --editable '.[test]'
	touch $@

$(VENV)/.lint-installed: requirements/lint.txt $(VENV)/.installed
	$(BIN)/pip install --quiet -r requirements/lint.txt
	touch $@

$(CUDA_VENV)/.torch-installed: requirements/build.txt
	test -x $(CUDA_BIN)/python || $(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_BIN)/pip install --quiet $(CUDA_TORCH) -r requirements/build.txt
	touch $@

# --- what the targets do ------------------------------------------------------------------------------------------

demo: $(VENV)/.installed
	$(BIN)/hyenarec train --epochs 6 --batch_tokens 6144 --optimizer.learning_rate 3e-3 --model.dropout 0.1 \
		--output_dir $(DEMO) --overwrite
	$(BIN)/hyenarec recommend --model $(DEMO) --user 1 --k 10

# The C++ tests are built in pip's build tree, beside the library that they test.
test: BUILD_TREE = $(shell $(BIN)/python build_backend/hyenarec_environment.py)/cmake
test: export PATH := $(BIN):$(PATH)
test: $(VENV)/.installed
	python -m pytest
	cmake -S . -B $(BUILD_TREE) -DHYENAREC_TESTS=ON
	cmake --build $(BUILD_TREE) --target cpp_tests
	ctest --test-dir $(BUILD_TREE) --output-on-failure

lint: $(VENV)/.lint-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_FORMATTED)

cuda-build: $(CUDA_VENV)/.torch-installed
	HYENAREC_CUDA=1 $(CUDA_BIN)/pip install --verbose --no-build-isolation .
	cd scripts && $(CUDA_BIN)/python -P check_cuda_build.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/ops.py --output build/ops.json
	$(BIN)/python benchmarks/legendre_conv.py --output build/legendre_conv.json
	$(BIN)/python benchmarks/linear_cross_entropy.py --output build/linear_cross_entropy.json
	$(BIN)/python benchmarks/dropout_add_layer_norm.py --output build/dropout_add_layer_norm.json
	$(BIN)/python benchmarks/catalogue.py --output build/catalogue.json
	$(BIN)/python benchmarks/training_step.py --output build/training_step.json

# With the machine's own Python and torch: it may have no network.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

install-check: $(CUDA_VENV)/.torch-installed
	$(PYTHON) scripts/check_install.py --torch '$(TORCH)' --cuda-python $(CUDA_BIN)/python

clean:
	rm -rf $(VENV) $(CUDA_VENV) build dist *.egg-info hyenarec/include hyenarec/lib hyenarec/_C.*
