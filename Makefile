# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/quickstart

.PHONY: quickstart test lint keys map docs clean help

help:
	@echo "make quickstart   train a small Chinese chat model on this machine, from nothing (about 10 minutes on 2 cores)"
	@echo "make test         linters, types and the whole test suite"
	@echo "make lint         linters and types only"
	@echo "make keys         what --help and completion know of the recipes' keys, after a change of those"
	@echo "make map          the picture of the imports in docs/architecture.md"
	@echo "make docs         the documentation as a website, in English and Chinese: site/index.html"
	@echo "make clean        remove the environment (runs/ is yours and stays)"

quickstart: $(VENV)/.quickstart
	$(BIN)/babyllama quickstart out=$(OUT)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

keys: $(VENV)/.dev
	$(BIN)/python -m babyllama.verbs

map: $(VENV)/.dev
	$(BIN)/python docs/rooms.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html (Chinese: site/index.zh-CN.html)"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "babyllama needs Python 3.11 or newer; try: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[chat,data,report,serve]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV)
