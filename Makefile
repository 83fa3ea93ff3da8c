# Every target creates the environment first: `make demo` and `make test` need only git,
# make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow check clean-demo

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(INSTALLED) ## create the environment in .venv, pinned by constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable ".[all]"
	touch $@

check: env ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# One thread a process: the suite starts ranks and workers of its own.
test: check ## the suite, within 10 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/pytest

test-slow: env ## what takes longer: many kills, seeds
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --timeout 3600
