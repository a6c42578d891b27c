PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The environment that is tested. The package itself states only a lower bound.
TORCH := torch==2.13.0
# The oldest version that the package admits; 2.8 cannot save sharded checkpoints.
OLDEST := torch==2.9.1

.PHONY: demo test test-all test-oldest matrix check format clean

demo: $(VENV)/.demo
	$(BIN)/linnet tour

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/.test $(VENV)/.models
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

test-oldest:
	$(PYTHON) -m venv $(VENV)/oldest
	$(VENV)/oldest/bin/python -m pip install --quiet --disable-pip-version-check "$(OLDEST)" -e ".[test]"
	$(VENV)/oldest/bin/python -m pytest -n 2

test-%: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 tests/$*

matrix: $(VENV)/.test $(VENV)/.models
	cd tests && ../$(BIN)/python -m support.matrix

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.check
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[cli]"
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[test]"
	touch $@

$(VENV)/.models: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[models,log,trainers]"
	touch $@

$(VENV)/.check: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[dev]"
	touch $@
