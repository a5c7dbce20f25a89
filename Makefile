# Everything runs in .venv, which the first target that needs it makes. PYTHON may name another interpreter (3.11 or later).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WHAT ?=

.PHONY: demo test lint bench clean help

help:
	@echo "Everything runs in .venv; 'make clean' removes it, which another PYTHON=… needs first."
	@echo "make demo   235,000 real documents into a SQLite file and out again"
	@echo "make test   all tests (make test WHAT='-k crash' passes options to pytest)"
	@echo "make lint   ruff, mypy --strict, pyright"
	@echo "make bench  speed beside a hand-written SQLite loop and other libraries"

# A stamp for each set of packages, so that a second run installs nothing.
$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/demo: $(VENV)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/dev: $(VENV)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[demo]' --group dev
	@touch $@

$(VENV)/bench: $(VENV)/dev
	$(PIP) --group bench
	@touch $@

demo: $(VENV)/demo
	$(BIN)/python demo/cities.py

test: $(VENV)/dev
	$(BIN)/python -m pytest $(WHAT)

# --verifytypes finds the package through the python that is first on the path, and not through --pythonpath.
lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --ignoreexternal --verifytypes mycelia_storage

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks --svg docs/benchmarks.svg

clean:
	rm -rf $(VENV) demo-data
