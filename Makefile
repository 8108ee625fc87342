# One command each; every target makes what it needs first. `make help` lists them.
#
# PYTHON        the interpreter of the virtual environments; of no effect on those that are there
# TORCH         what pip installs as torch; on Linux the package index gives the build for CUDA, which runs on a CPU, too
# GPU_TORCH     that of the GPU machine that `make gpu-package` compiles for
# NEWEST_TORCH  the newest that HyenaRec supports
PYTHON ?= python3
TORCH ?= torch==2.13.0
GPU_TORCH ?= torch==2.11.0
NEWEST_TORCH ?= torch==2.14.1

VENV := .venv
CUDA_VENV := .venv-cuda
NEWEST_VENV := .venv-newest
GPU_PACKAGE := build/gpu-package
DEMO := runs/demo
BIN := $(CURDIR)/$(VENV)/bin
CUDA_BIN := $(CURDIR)/$(CUDA_VENV)/bin
NEWEST_BIN := $(CURDIR)/$(NEWEST_VENV)/bin

ifneq ($(words $(CURDIR)),1)
$(error hyenarec needs a folder without blanks in its path, got '$(CURDIR)')
endif

BUILD_FILES := CMakeLists.txt setup.py pyproject.toml $(wildcard cmake/* build_backend/*.py requirements/build.txt)
SOURCES := $(shell find csrc -type f)
PACKAGE := $(shell find hyenarec -name '*.py')
CPP_TESTS := $(shell find cpp_tests -type f)
CPP_FORMATTED := $(shell find csrc cpp_tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help demo test check lint bench gpu-package gpu-package-test gpu-rehearsal gpu-check gpu-check-2 cuda-build \
	install-check clean test-packages
.DELETE_ON_ERROR:
.NOTPARALLEL: # what is missing is named before anything is built; compilers run in parallel in any case

help:
	@echo "make demo               trains on synthetic histories and shows metrics, reference baselines and recommendations"
	@echo "make test               every test: pytest, then ctest"
	@echo "make check              lint and the fast tests, in under two minutes"
	@echo "make lint               ruff, mypy, import-linter, clang-format"
	@echo "make bench              times kernel and FFT operators on this machine; measures what the Legendre scan and the loss promise"
	@echo "make gpu-package        compiles the package for a GPU machine with $(GPU_TORCH) into $(GPU_PACKAGE), no GPU needed"
	@echo "make gpu-package-test   the operators' tests with that package, on this CPU"
	@echo "make gpu-check          on a GPU machine, with that package: operators, speed, profile, tests in under ten minutes"
	@echo "make gpu-check-2        the same for sanitizers, loss, training steps and Nsight Compute"
	@echo "make gpu-rehearsal      both of them on a CPU with tiny sizes"
	@echo "make cuda-build         compiles and installs with CUDA against $(NEWEST_TORCH), no GPU needed"
	@echo "make install-check      pip install in every situation that the build supports"
	@echo "make clean              removes environments and builds"

# --- environments: a stamp file in each says that it is complete --------------------------------------------------

# The Python of an environment: its own, if it is there.
python_of = $(or $(wildcard $(1)/bin/python),$(strip $(PYTHON)),python3)

# $(call system_packages,FOLDER,PIECES): what the system lacks to build in an environment, and of other pieces, is
# installed, or named in a sentence.
system_packages = PYTHON='$(call python_of,$(1))' scripts/system_packages.sh \
	compiler python headers $(if $(wildcard $(1)/bin/python),,venv) $(2)

# $(call make_environment,FOLDER): before anything takes time.
define make_environment
	@$(call system_packages,$(1))
	@'$(call python_of,$(1))' scripts/make_environment.py $(1)
endef

# Before everything else where `test` is one of the goals, as in `make demo test`.
test-packages:
	@$(call system_packages,$(VENV),git googletest)

# torch comes first: the extension is compiled against it.
$(VENV)/.torch-installed: requirements/build.txt | $(if $(filter test,$(MAKECMDGOALS)),test-packages)
	$(call make_environment,$(VENV))
	$(BIN)/python -m pip install $(TORCH) -r requirements/build.txt
	touch $@

$(VENV)/.installed: $(VENV)/.torch-installed $(BUILD_FILES) $(SOURCES)
	PATH="$(BIN):$$PATH" $(BIN)/python -m pip install --verbose --no-build-isolation --editable '.[test]'
	touch $@

$(VENV)/.lint-installed: requirements/lint.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -r requirements/lint.txt
	touch $@

$(CUDA_VENV)/.installed: requirements/build.txt requirements/gpu.txt
	$(call make_environment,$(CUDA_VENV))
	$(CUDA_BIN)/python -m pip install $(GPU_TORCH) -r requirements/build.txt -r requirements/gpu.txt
	touch $@

$(NEWEST_VENV)/.torch-installed: requirements/build.txt
	$(call make_environment,$(NEWEST_VENV))
	$(NEWEST_BIN)/python -m pip install $(NEWEST_TORCH) -r requirements/build.txt
	touch $@

# --- what the targets do ------------------------------------------------------------------------------------------

demo: $(VENV)/.installed
	$(BIN)/hyenarec train --model.dim 32 --model.num_blocks 1 --model.dropout 0.1 --model.repeat_head true --epochs 8 --batch_events 4096 \
		--optimizer.learning_rate 4e-3 --output_dir $(DEMO) --overwrite
	$(BIN)/hyenarec recommend --model $(DEMO) --user 1 --k 10

# The C++ tests are built in pip's build tree, beside the library that they test.
test: BUILD_TREE = $(shell $(BIN)/python build_backend/hyenarec_environment.py)/cmake
test: private export PATH := $(BIN):$(PATH)
test: test-packages $(VENV)/.installed
	OMP_NUM_THREADS=1 python -m pytest -n 2
	cmake -S . -B $(BUILD_TREE) -DHYENAREC_TESTS=ON
	cmake --build $(BUILD_TREE) --target cpp_tests
	ctest --test-dir $(BUILD_TREE) --output-on-failure

# One thread a process: two processes of two threads each would only get in each other's way on two cores.
check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m 'not slow'

lint: $(VENV)/.lint-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_includes.py
	$(BIN)/clang-format --dry-run -Werror $(CPP_FORMATTED)
	@! grep -nE '^.{111,}' $(CPP_FORMATTED) # comments, too, which clang-format leaves alone

$(GPU_PACKAGE)/package.json: $(CUDA_VENV)/.installed $(BUILD_FILES) $(SOURCES) $(PACKAGE)
	$(CUDA_BIN)/python scripts/gpu_package.py
	PYTHONPATH=$(GPU_PACKAGE) $(CUDA_BIN)/python scripts/check_cuda_build.py

gpu-package: $(GPU_PACKAGE)/package.json

# -P: the package, not the source tree's folder of the same name.
gpu-package-test: $(GPU_PACKAGE)/package.json
	PYTHONPATH=$(GPU_PACKAGE) OMP_NUM_THREADS=1 $(CUDA_BIN)/python -P -m pytest -n 2 -q -k 'not cuda' python_tests/ops

gpu-rehearsal: $(GPU_PACKAGE)/package.json
	$(CUDA_BIN)/python benchmarks/gpu_rehearsal.py

# With the GPU machine's own Python and torch: it may have no network. Results go to $$OUT, else to build/gpu-check.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py first

gpu-check-2:
	$(PYTHON) benchmarks/gpu_check.py second

cuda-build: $(NEWEST_VENV)/.torch-installed
	HYENAREC_CUDA=1 PATH="$(NEWEST_BIN):$$PATH" $(NEWEST_BIN)/python -m pip install --verbose --no-build-isolation .
	cd scripts && $(NEWEST_BIN)/python -P check_cuda_build.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/ops.py --output build/ops.json
	$(BIN)/python benchmarks/legendre_conv.py --output build/legendre_conv.json
	$(BIN)/python benchmarks/linear_cross_entropy.py --output build/linear_cross_entropy.json
	$(BIN)/python benchmarks/dropout_add_layer_norm.py --output build/dropout_add_layer_norm.json
	$(BIN)/python benchmarks/catalogue.py --output build/catalogue.json
	$(BIN)/python benchmarks/training_step.py --output build/training_step.json

install-check: $(CUDA_VENV)/.installed
	$(PYTHON) scripts/check_install.py --torch '$(TORCH)' --cuda-python $(CUDA_BIN)/python

clean:
	rm -rf $(VENV) $(CUDA_VENV) $(NEWEST_VENV) build dist *.egg-info hyenarec/include hyenarec/lib hyenarec/_C.*
