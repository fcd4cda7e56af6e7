# `make demo` and `make test` are each complete on a machine with Python 3.11+ and make.
# The first of them needs the package index; once .venv is made, neither needs a network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests and demo run several processes on few cores: one thread of linear algebra for each.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help demo test test-full bench setup lint types contracts unit docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       set up, then attack and defend a network, live; ARGS='--json FILE …'"
	@echo "make test       set up, then lint, types, import contracts and the tests with coverage"
	@echo "make test-full  the same, with the long runs, and docs/reliability.md anew"
	@echo "make bench      set up, then measure detection; ARGS='detection --seeds 3 …'"
	@echo "make docs       write the generated pages of docs/ anew"
	@echo "make setup      only make the virtual environment in $(VENV)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.11 …"; exit 1; }
	@echo "Installing nnsec and what it needs into $(VENV): a minute or more, without output."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e ".[embedded,dev]"
	@touch $(READY)

setup: $(READY)

demo: $(READY)
	$(BIN)/nnsec demo $(ARGS)

bench: $(READY)
	$(BIN)/nnsec bench $(or $(ARGS),detection)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

contracts: $(READY)
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

# Two workers, as they wait for services for much of the time; on one machine with two cores.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --cov --cov-report=term-missing:skip-covered --cov-fail-under=95

unit: $(READY)
	$(PYTEST) $(ARGS)

test: lint contracts types unit

# What the runs show of the promises is put into docs/reliability.md.
SHOWN := .nnsec/reliability
test-full: lint contracts types
	rm -rf $(SHOWN)
	NNSEC_RELIABILITY=$(abspath $(SHOWN)) $(PYTEST) -m "" $(ARGS)
	$(BIN)/python -m tests.fault.reliability $(SHOWN)

docs: $(READY)
	$(BIN)/python -m workers.reference docs

clean:
	rm -rf $(VENV) .nnsec .coverage*
