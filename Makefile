# Everything runs in .venv, which the first target that needs it makes. PYTHON may name another interpreter (3.11 or later).
# Tests of encryption run in .venv-encryption: the driver that encrypts has the module name of the one that does not.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WHAT ?=
# Tests start a thousand programs, each of which would compile the whole library where this keeps bytecode from being kept.
unexport PYTHONDONTWRITEBYTECODE
ENCRYPTION := .venv-encryption

.PHONY: demo demo-postgres test test-encryption lint bench clean help

help:
	@echo "Everything runs in .venv and .venv-encryption; 'make clean' removes them, which another PYTHON=… needs first."
	@echo "make demo   235,000 real documents into a SQLite file and out again"
	@echo "make demo-postgres   the same documents on a PostgreSQL server, which it starts: the same answers"
	@echo "make test   all tests (make test WHAT='-k crash' passes options to pytest, and leaves out the next)"
	@echo "make test-encryption   those of encryption, which 'make test' runs too"
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

$(VENV)/demo-postgres: $(VENV)/demo
	$(PIP) --group demo-postgres
	@touch $@

$(VENV)/dev: $(VENV)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[demo]' --group dev
	@touch $@

$(VENV)/bench: $(VENV)/dev
	$(PIP) --group bench
	@touch $@

$(ENCRYPTION)/made: $(VENV)/python pyproject.toml constraints.txt
	$(BIN)/python -m venv --without-pip $(ENCRYPTION)
	$(BIN)/python -m pip --python $(ENCRYPTION) install --quiet --disable-pip-version-check --constraint constraints.txt --group encryption
	@touch $@

demo: $(VENV)/demo
	$(BIN)/python demo/cities.py

demo-postgres: $(VENV)/demo-postgres
	$(BIN)/python demo/on_postgres.py

test: $(VENV)/dev
	$(BIN)/python -m pytest $(WHAT)
ifeq ($(WHAT),)
	@$(MAKE) --no-print-directory test-encryption
endif

test-encryption: $(ENCRYPTION)/made
	PYTHONPATH="$(CURDIR)/src" $(ENCRYPTION)/bin/python -m pytest tests/encryption tests/test_docs.py::test_the_examples_of_a_page_run $(WHAT)

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
	rm -rf $(VENV) $(ENCRYPTION) demo-data
