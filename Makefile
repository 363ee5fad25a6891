# Two commands for a fresh machine: `make run` (the laptop recipe, ends with a report) and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help run install test test-graph test-slow lint format bench clean

help:
	@echo "make run        install, then the laptop recipe: raw pages to a report, about 10 minutes on 2 quiet cores"
	@echo "make test       install, then the test suite"
	@echo "make test-graph the whole recipe in small, from pages to the report (2 minutes)"
	@echo "make test-slow  the tests that take minutes"
	@echo "make lint       ruff, format check, import contract, types"
	@echo "make bench      measurements against peers, into benchmarks/"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else "herd needs Python 3.11 or 3.12, this is %d.%d: make PYTHON=/path/to/python3.11" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (1-3 minutes)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(STAMP)

run: $(STAMP)
	$(BIN)/herd recipe recipe=laptop

# One torch thread per worker: two workers with two threads each would fight over two cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-graph: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/recipe/test_ci.py -k whole_graph

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/training/step_vs_transformers.py

clean:
	rm -rf $(VENV) runs
