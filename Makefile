# make demo and make test do all the set-up first; with nothing changed it takes well under two seconds.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
APT := libopencv-dev libturbojpeg0-dev pkg-config g++
BIN := .venv/bin
PACKAGES := crelu_models crelu_data sweeps
# By pytest-xdist, a file in one process. More processes than cores: many tests wait for Ray, MLflow or a signal.
SIDE_BY_SIDE := --dist loadfile --no-loadscope-reorder -n

# Where a machine forbids it, each of the tests' hundreds of processes would compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

# An environment without CUDA stays one until it is made anew by make setup CPU=
CPU ?= $(if $(wildcard .venv/.complete-cpu),1)
COMPLETE := .venv/.complete$(if $(CPU),-cpu)
SIZE := 7.2 GB
CPU_SIZE := 2.4 GB
CUDA := nvidia-|cuda-|triton==
TORCH := torch==|torchvision==

.PHONY: help demo test test-cluster setup notebook lint docs bench lock

help:
	@echo "make demo    nine rows of Table 4 on embedded pictures, in minutes, on this machine"
	@echo "make test    the tests of one host, but for the sweep on servers and the notice of a spot machine"
	@echo "make test-cluster    the tests of the clusters: hosts of namespaces, stores on servers; needs root, sshd, rsync and iproute2"
	@echo "make lint    ruff and mypy --strict"
	@echo "make docs    the site of docs/, into docs/_build; a warning is an error"
	@echo "make bench   the benchmarks that need no GPU"
	@echo "make notebook    JupyterLab, put into .venv from notebook.lock, on notebooks/"
	@echo "make lock    requirements.lock and notebook.lock anew from pyproject.toml"
	@echo "make setup   only the set-up: system libraries, uv, .venv from requirements.lock; $(SIZE) of disk"
	@echo "make setup CPU=1    the same without CUDA: torch's build for CPUs; $(CPU_SIZE) of disk"

demo: setup
	@$(BIN)/python -m sweeps.imagenet_placement

test: setup
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) 4 --ignore=tests/cluster

test-cluster: setup
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) 2 tests/cluster

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: setup
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build
	@echo "docs/_build/index.html"

bench: setup
	@$(BIN)/python -m benchmarks

setup: $(COMPLETE)

notebook: .venv/.notebook
	@$(BIN)/jupyter lab --notebook-dir notebooks

$(COMPLETE): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or later is needed: apt-get install python3" >&2; exit 2; fi
	@echo "$(if $(CPU),.venv without CUDA takes about $(CPU_SIZE) of disk,.venv takes about $(SIZE) of disk; $(CPU_SIZE) without CUDA: make setup CPU=1)"
	@if [ "$$(uname)" != Darwin ] && ! { command -v pkg-config && command -v g++ && pkg-config --exists opencv4 libturbojpeg; } >/dev/null 2>&1; then \
		sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo"; \
		echo "Installing FFCV's system libraries: $(APT)"; \
		{ $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq $(APT) >/dev/null; } || { \
			echo "FFCV's system libraries could not be installed. As an administrator, run: apt-get install $(APT)" >&2; exit 2; }; \
	fi
	@command -v uv >/dev/null 2>&1 || [ -x .setup/bin/uv ] || { \
		sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo"; \
		$(PYTHON) -m venv .setup 2>/dev/null || { rm -rf .setup; \
			$$sudo apt-get update -qq; \
			DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq $(notdir $(PYTHON))-venv >/dev/null && $(PYTHON) -m venv .setup; } || { \
			echo "uv could not be installed: it needs Python's venv. As an administrator, run: apt-get install $(notdir $(PYTHON))-venv" >&2; \
			exit 2; }; \
		.setup/bin/pip install -q uv; }
	@uv=$$(command -v uv || echo .setup/bin/uv); \
		[ -x $(BIN)/python ] || $$uv venv -q --python $(PYTHON) .venv
ifeq ($(CPU),)
	@uv=$$(command -v uv || echo .setup/bin/uv); \
		rm -f .venv/.complete* .venv/.notebook; \
		$$uv pip sync -q --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
else
# Bytecode of every module would be 0.4 GB more; what a command imports is compiled then.
	@uv=$$(command -v uv || echo .setup/bin/uv); \
		torch="$$(grep -oE '^($(TORCH))[^ ]+' requirements.lock)"; \
		build="$$uv pip install -q --python $(BIN)/python --no-deps --torch-backend cpu"; \
		$$build --dry-run --reinstall $$torch || { \
			echo "torch's build for CPUs could not be fetched: only torch's own package index has it. Without CPU=1" \
				"the build with CUDA is installed, which runs on CPUs too." >&2; exit 2; }; \
		rm -f .venv/.complete* .venv/.notebook; \
		awk '/^[^ ]/ {kept = !/^($(CUDA)|$(TORCH))/} kept' requirements.lock > .venv/cpu.lock; \
		$$uv pip sync -q --python $(BIN)/python --require-hashes .venv/cpu.lock; \
		$$build $$torch
endif
	@uv=$$(command -v uv || echo .setup/bin/uv); \
		$$uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

.venv/.notebook: $(COMPLETE) notebook.lock
	@uv=$$(command -v uv || echo .setup/bin/uv); \
		$$uv pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r notebook.lock
	@touch $@

lock:
	@uv=$$(command -v uv || echo .setup/bin/uv); \
		compile="$$uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
			--no-annotate"; \
		$$compile --all-extras --group dev --group docs pyproject.toml -o requirements.lock; \
		$$compile -c requirements.lock --group notebook -o notebook.lock
