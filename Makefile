# `make test` is complete on a machine with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: test lint types unit setup clean
.DEFAULT_GOAL := help

help:
	@echo "make test    set up, then lint, type-check and run the tests"
	@echo "make setup   only make the virtual environment in $(VENV)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[embedded,dev]"
	@touch $(READY)

setup: $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/pytest

test: lint types unit

clean:
	rm -rf $(VENV) .nnsec
