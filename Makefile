# Every target is explained by `make help`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_ARGS ?=
PYTEST_ARGS ?= -n 2
BENCH ?= offline
BENCH_ARGS ?=
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow lint format types docs bench clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: $(STAMP)  ## make .venv with everything that is needed, in pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "prefrl needs Python 3.11 to 3.13: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)  ## train policies from preferences, print the table, leave a video and a report (DEMO_ARGS="key=value …")
	$(BIN)/prefrl train $(DEMO_ARGS)

test: $(STAMP)  ## all tests that take seconds, and the doctests (≤ 5 minutes on 2 cores)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## ruff: mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

docs: $(STAMP)  ## check README: its links, its commands, its map of files
	$(BIN)/python -m pytest -q tests/test_docs.py

bench: $(STAMP)  ## one benchmark: make bench BENCH=core BENCH_ARGS="seeds=5"
	$(BIN)/prefrl bench $(BENCH) $(BENCH_ARGS)

clean:  ## remove caches and builds (runs, datasets and .venv stay)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find prefrl agents envs tests -name __pycache__ -type d -prune -exec rm -rf {} +
