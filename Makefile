# make demo      the main job on an embedded default: instrument, train, export, compare
# make test      the tests that take at most a few seconds each
# make test-all  the rest of the tests
# make lint      formatting, lint and types
# make check     lint and test
# make docs      the documentation into docs/_build/html; a dead link fails
#
# Each sets up its own virtual environment first where that is missing or older than
# pyproject.toml. PYTHON=python3.12 picks the interpreter, VENV=DIR the place.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint check docs clean

demo: $(STAMP)
	$(BIN)/fxprune demo

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow'

test-all: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist docs/_build docs/reference/cli.md *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
