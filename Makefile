# Everything lives in .venv; versions are held by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run side by side, each process with servers of its own; a server that is given is only one.
JOBS ?= $(if $(NEO4J_URI),0,auto)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo model test lint bench clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "circuitbase needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,trace]'
	touch $@

demo: $(VENV)/.made  ## trace the shipped model, store and ask: a story, and demo/report.html
	$(BIN)/circuitbase demo --store circuits.db --report demo/report.html

model: $(VENV)/.made  ## make the shipped model and its transcoders again; see docs/shipped-model.md
	$(BIN)/python -m circuitbase.shipped.making

lint: $(VENV)/.made  ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## everything, real Neo4j included
	$(BIN)/python -m pytest -q -n $(JOBS) --maxprocesses 4 --dist loadfile --durations=15

bench: $(VENV)/.made  ## measure, side by side; see benchmarks/README.md
	$(BIN)/python -m benchmarks.run

clean:  ## remove what the above made
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache
