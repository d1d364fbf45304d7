# `make run` opens the playground, `make test` runs every test; both need Python 3.11+ and nothing else.

HOST ?= 127.0.0.1
PORT ?= 7860
# Tests per process: two processes keep two cores busy.
WORKERS ?= 2

VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
# The first interpreter that is new enough; `make run PYTHON=/path/to/python3` overrides the search.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: run install install-dev test test-cov lint format format-check docs clean help

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

run: $(VENV)/.installed ## Install what is missing and open the playground on http://HOST:PORT
	@echo "Opening the playground on http://$(HOST):$(PORT) (stop it with Ctrl-C)."
	@HOST="$(HOST)" PORT="$(PORT)" exec $(BIN)/python app.py

install: $(VENV)/.installed ## Install the package into .venv

install-dev: $(VENV)/.installed-dev ## Install the package and everything for developing it into .venv

test: $(VENV)/.installed-dev ## Install what tests need and run them all
	@echo "Running all tests (a few minutes)."
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-cov: $(VENV)/.installed-dev ## Run all tests and fail under 85 % coverage
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term --cov-report=xml

lint: $(VENV)/.installed-dev ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-dev ## Rewrite the code in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

format-check: $(VENV)/.installed-dev ## Fail if `make format` would change anything
	@$(BIN)/ruff format --check .

docs: $(VENV)/.installed-dev ## Write docs/configuration.md and docs/api-reference.md anew from the code
	@$(BIN)/python docs/build_reference.py

clean: ## Remove the virtual environment and all caches; runs stay
	rm -rf $(VENV) build dist htmlcov .coverage* coverage.xml .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.created:
	@if [ -z "$(PYTHON)" ]; then echo "FundamentaLLM needs Python 3.11 or newer: install it, then run make again." >&2; exit 2; fi
	@echo "Creating a virtual environment in $(VENV) with $(PYTHON)."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created requirements.txt pyproject.toml
	@echo "Installing FundamentaLLM and what it needs (once; PyTorch is the large part)."
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@echo "Installing what tests and checks need (once)."
	@$(PIP) -r requirements.txt -r requirements-dev.txt
	@touch $@
