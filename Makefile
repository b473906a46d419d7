# `make demo` and `make test` need Python 3.11 or newer and nothing else: they make their own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test chaos soak bench lint clean

demo: $(VENV)/demo
	$(BIN)/python examples/flights.py

test: $(VENV)/test lint
	$(BIN)/python -m pytest

chaos: $(VENV)/test
	$(BIN)/python -m streamlog.testing.chaos --seconds 60

soak: $(VENV)/test
	$(BIN)/python -m streamlog.testing.chaos --seconds 1800

lint: $(VENV)/test
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(VENV)/bench
	$(BIN)/python benchmarks/run.py --big --json benchmarks/results.json
	$(BIN)/python benchmarks/render.py

$(VENV)/demo $(VENV)/test $(VENV)/bench: $(VENV)/%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info
