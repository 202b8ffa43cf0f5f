# `make demo` and `make test` build their own environment in .venv and reuse it. They ask for Linux and Python 3.11 or newer.
#   make PYTHON=python3.12 ...    another interpreter
#   make INSTALLER=pip ...        pip instead of uv: slower, and it follows pip's own configuration (mirrors, proxies)

PYTHON ?= python3
INSTALLER ?= uv
BIN := .venv/bin
PINS := setup.cfg pyproject.toml constraints.txt

install.uv := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -b constraints.txt
install.pip := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
install := $(install.$(INSTALLER))
export UV_HTTP_TIMEOUT ?= 300

.PHONY: help demo test lint docs clean FORCE

help:
	@echo "make demo    train, score, register, promote and sample a digits model: about five minutes on two cores"
	@echo "make test    lint, import contracts, unit and integration tests"
	@echo "make lint    the first half of make test"
	@echo "make docs    the manual as web pages, in site/"
	@echo "make clean   remove what make made; runs/ and data/ stay"

demo: .venv/.core
	@$(BIN)/cdrl demo

test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -n auto --dist loadfile
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.dev
	@$(BIN)/flake8
	@$(BIN)/isort --check-only --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: .venv/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build site *.egg-info .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps. .busy stands while an installation runs: where one was cut short, the next call starts afresh.
ifneq ($(wildcard .venv/.busy),)
.venv/.base: FORCE
endif

.venv/.base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "cdrl needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1). Say make PYTHON=..." >&2; exit 2; }
	@test -n "$(install)" || { echo "INSTALLER=$(INSTALLER): expected uv or pip" >&2; exit 2; }
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@touch $@

.venv/.core: target := .
.venv/.dev: target := .[dev]
.venv/.docs: target := .[docs]
.venv/.dev .venv/.docs: .venv/.core
.venv/.core .venv/.dev .venv/.docs: .venv/.base $(PINS)
	@echo "installing $(target) into .venv with $(INSTALLER): a minute or two the first time" >&2
	@touch .venv/.busy
	@$(install) -e '$(target)' || { \
	  echo "the installation failed; pip's own configuration is followed by: make INSTALLER=pip ..." >&2; exit 1; }
	@rm .venv/.busy
	@touch $@
