# One command each; every one installs what it needs into .venv first (skipped when nothing changed).
#
#   make demo    the five classic studies: tables here, and headwater-demo.html
#   make test    the quick tests (no browser, no heavy optional library)
#   make check   everything that CI runs
#   make docs    the documentation site in out/site

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test processes: one per core, at most 8; each computes on one thread, so they do not fight over cores.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 8 ] && n=8; echo $$n)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

# The same pins for the packages and for the build backend that pip fetches on its own (two names: pip renamed it).
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types layers docs docs-generated browser format clean

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "headwater needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What the compiled statistics are made of. Installing compiles them; later only a change here does.
KERNELS := $(wildcard src/headwater/stats/kernels/*.[ch]) scripts/build_kernels.py

$(VENV)/.kernels: $(KERNELS) | $(BIN)/python
	$(BIN)/python scripts/build_kernels.py
	@touch $@

# A stamp per set of packages; it is renewed when a requirement or a pin changes.
$(VENV)/.installed-core: pyproject.toml constraints.txt | $(BIN)/python $(VENV)/.kernels
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-all: pyproject.toml constraints.txt | $(BIN)/python $(VENV)/.kernels
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,integration]'
	@touch $@ $(VENV)/.installed-core

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	@touch $@ $(VENV)/.installed-core

demo: $(VENV)/.installed-core
	$(BIN)/headwater demo

test: $(VENV)/.installed-all
	$(PYTEST) -m "not slow and not integration and not browser"

lint: $(VENV)/.installed-all
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-all
	$(BIN)/mypy

layers: $(VENV)/.installed-all
	$(BIN)/lint-imports

docs-generated: $(VENV)/.installed-all
	$(BIN)/python scripts/generate_docs.py --check
	$(BIN)/python scripts/generate_detector_docs.py --check

browser:
	@bash scripts/ensure_chromium.sh

# pytest comes last, so that its summary is the last line.
check: $(VENV)/.installed-all lint types layers docs-generated browser
	HEADWATER_REQUIRE_ALL=1 $(PYTEST)

docs: $(VENV)/.installed-docs
	$(BIN)/python scripts/generate_docs.py
	$(BIN)/python scripts/generate_detector_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir out/site

format: $(VENV)/.installed-all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) src/headwater/stats/kernels/_moments.* out build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis headwater-demo.html
