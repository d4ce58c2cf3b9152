# `make demo` and `make test` need only Python 3.10 to 3.13: they make .venv and install everything into it.
# They do so again only after a change of pyproject.toml, constraints.txt, setup.py or the C++ sources.

.PHONY: help demo test lint types imports unit format constraints clean
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= auto

# Used only to make the virtual environment. Override with `make PYTHON=... demo`.
SUITABLE = import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.10 python3 python; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)

# Each worker of pytest has one core; more threads would only wait for each other.
export OMP_NUM_THREADS ?= 1

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(VENV)/.installed ## make a real edit with the built-in checkpoint: demo/grid.png
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed-dev lint types imports ## run everything that CI runs
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 tests/parity
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 tests/end_to_end tests/property tests/unit --cov

lint: $(VENV)/.installed-dev ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev ## check type hints
	$(BIN)/mypy

imports: $(VENV)/.installed-dev ## check the import directions between folders
	$(BIN)/lint-imports

unit: $(VENV)/.installed-dev ## run the unit tests only
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 tests/unit

format: $(VENV)/.installed-dev ## fix style and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# torch stays at the version that CI has installed.
constraints: ## pin the newest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear $(VENV)-constraints
	$(VENV)-constraints/bin/python -m pip install torch==2.13.0 -e ".[dev]"
	$(VENV)-constraints/bin/python scripts/write_constraints.py constraints.txt
	rm -rf $(VENV)-constraints

clean: ## remove everything that the other targets made
	rm -rf .coverage $(VENV) $(VENV)-constraints demo build dist src/*.egg-info .*_cache .hypothesis src/retouch/kernels/cpu/*.so src/retouch/images/*.so
	find src tests examples scripts -name __pycache__ -prune -exec rm -rf {} +

SETUP = pyproject.toml constraints.txt setup.py $(wildcard src/retouch/*/*.cpp src/retouch/kernels/cpu/*.cpp src/retouch/kernels/cpu/*.h)

# An interrupted installation leaves no stamp file, so the next run continues it; pip skips installed packages.
$(VENV)/.installed: $(SETUP)
	$(ensure-venv)
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(SETUP)
	$(ensure-venv)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $(VENV)/.installed $@

define ensure-venv
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 with venv found. Name one: make PYTHON=/path/to/python"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
endef
