# forethought: everything a person types after cloning. GNU make 3.81 or newer, bash or sh.
#
#   make ask                     ask the bundled model a question, watch it think
#   make ask Q="What's 2+2?"     ask another
#   make test                    the tests (make test-slow: the long ones)
#   make check                   formatting, lint, types, who may import whom
#   make audit                   hostile and odd answers to every verifier
#   make bench                   every script in benchmarks/, then their figures beside the baselines
#   make clean                   remove .venv and everything made by the tools

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
Q = Use 19, 36, 55 and 7 to make 65.

# The question reaches the program through the environment: no quote, dollar or backslash in it is
# read by make or by the shell.
ASK_QUESTION := $(value Q)
export ASK_QUESTION
unexport Q

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
# Extra arguments for the installation of torch alone, for example an index of CPU builds.
TORCH_ARGS ?=
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# Tests at the same time, each on one thread: a second thread of torch's waits for the others.
WORKERS ?= 2
BASELINES := benchmarks/check_baselines.py
BENCHMARKS = $(filter-out benchmarks/_% $(BASELINES),$(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help ask test test-slow check audit bench clean
.DELETE_ON_ERROR:

help:
	@sed -n '3,9s/^# *//p' Makefile

# Stamp files: what is installed and unchanged is not looked at again.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "forethought needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Creating $(VENV) ..." >&2
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing forethought (once; no compiler, no torch) ..." >&2
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(VENV)/.base
	@echo "Installing $(TORCH) (once; the largest part) ..." >&2
	@$(PIP) install -c constraints.txt $(TORCH_ARGS) "$(TORCH)"
	@echo "Installing the extras train, problems and dev (once) ..." >&2
	@$(PIP) install -c constraints.txt -e '.[train,problems,dev]'
	@touch $@

ask: $(VENV)/.base
	@$(BIN)/forethought ask --yes -- "$$ASK_QUESTION"

test: $(VENV)/.all
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not alone"
	@$(BIN)/python -m pytest -q -m "alone and not slow"

test-slow: $(VENV)/.all
	@$(BIN)/python -m pytest -q -m slow

check: $(VENV)/.all
	@echo "ruff format" >&2; $(BIN)/ruff format --check .
	@echo "ruff check" >&2; $(BIN)/ruff check .
	@echo "mypy" >&2; $(BIN)/mypy
	@echo "lint-imports" >&2; $(BIN)/lint-imports

audit: $(VENV)/.all
	@$(BIN)/forethought problems audit
	@echo "Other makers' verifiers, in their sandbox" >&2
	@$(BIN)/python -m pytest -q tests/evaluation/test_audit_adapted.py

bench: $(VENV)/.all
	@set -e; for script in $(BENCHMARKS); do echo "$$script" >&2; $(BIN)/python $$script; done
	@$(BIN)/python $(BASELINES)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
