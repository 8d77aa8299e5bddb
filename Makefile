# What a person does with this repository. `make` alone prints this list.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
TESTABLE := .venv/.testable
SHARDABLE := .venv/.shardable
BENCHABLE := .venv/.benchable
OLDEST := .venv-oldest/.installed
export OMP_NUM_THREADS ?= 1
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.venv/torch_extensions

.PHONY: help install quickstart test test-all test-zero test-oldest test-operators lint bench gpu tables docs clean

help:  ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(INSTALLED)  ## create .venv and install the package with the tested versions

quickstart: $(INSTALLED)  ## train CLARS, LARS and Nesterov SGD on real digits; table and figure at the end
	$(BIN)/clars table quickstart

test: $(TESTABLE)  ## the default test suite
	$(BIN)/python -m pytest -n 2 -m "not slow and not full and not deepspeed"

test-all: test $(SHARDABLE)  ## these, then the long ones and those of DeepSpeed; most of an hour
	$(BIN)/python -m pytest -n 2 -m "slow or full or deepspeed"

test-zero: $(SHARDABLE)  ## those of DeepSpeed ZeRO that are not long
	$(BIN)/python -m pytest -n 2 -m "deepspeed and not slow and not full"

test-operators: $(TESTABLE)  ## the tests of norms and optimizers without compiled kernels, by torch's operators
	CLARS_CPU_KERNELS=0 $(BIN)/python -m pytest -n 2 -m "not slow and not full" tests/norms tests/optim

test-oldest: $(OLDEST)  ## those, with the oldest torch and packages that are supported, in .venv-oldest
	.venv-oldest/bin/python -m pytest -n 2 -m "not slow and not full" tests/norms tests/optim

lint: $(TESTABLE)  ## check style, and the types of public names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(BENCHABLE)  ## measure the cost of a step, alone, beside other tools and as it grows; most of an hour
	$(BIN)/python benchmarks/step_time.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/optimizer_step.py
	$(BIN)/python benchmarks/host_time.py
	$(BIN)/python benchmarks/subset.py
	$(BIN)/python benchmarks/groups.py --rounds 3 --processes 1
	$(BIN)/python benchmarks/grouped.py
	$(BIN)/python benchmarks/noise_scale.py
	$(BIN)/python benchmarks/sharding_time.py
	$(BIN)/python benchmarks/compiled_step.py
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/data_rate.py

gpu:  ## test one GPU and measure what a step takes on it; eight minutes; without .venv, by PYTHON as it is
	PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py

tables: $(INSTALLED)  ## regenerate every committed table and figure from its committed records
	for results in recipes/*/results/v*/*/table.md; do \
		(IFS=/; set -- $$results; $(BIN)/clars table $$2@$$4 --tier $$5 --no-run --out recipes/$$2/results/$$4/$$5) || exit; \
	done
	$(BIN)/clars recipes --write

docs: $(TESTABLE)  ## build the site of the documentation, build/site/index.html
	$(BIN)/python docs/pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove the environment and all runs
	rm -rf .venv .venv-oldest runs build

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name it with: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv: about 6 GB, PyTorch most of it; a few minutes."
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[recipes]' --constraint constraints.txt
	@$(BIN)/python -c 'from clars.native import build; build.load()'  # compiled once, not within the first run
	@touch $@

$(TESTABLE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[dev,examples]' --constraint constraints.txt
	@touch $@

$(SHARDABLE): $(TESTABLE)
	$(BIN)/python -m pip install --quiet --editable '.[dev,examples,deepspeed]' --constraint constraints.txt
	$(BIN)/python -c 'from deepspeed.comm.torch import build_shm_op; build_shm_op()'  # once, not within a test's time
	@touch $@

$(BENCHABLE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[bench]' --constraint constraints.txt
	@touch $@

$(OLDEST): pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	.venv-oldest/bin/python -m pip install --quiet --editable '.[recipes]' pytest pytest-xdist hypothesis \
		--constraint constraints-oldest.txt
	@touch $@
