# Every target makes the virtual environment by itself; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
INSTALLED := .venv/.installed
FOLDERS := networks training post_hoc_ema tools
TYPES := .mypy_cache/folders

# A worker per processor, each with one thread (tests/conftest.py); tests of a file stay together while there are enough.
TEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-fast test-slow test-all lint types docs format hooks

demo: $(INSTALLED)  ## a small run from data to pictures, into demo/
	$(BIN)/edm2 demo --out demo

test: lint test-fast  ## what a change must pass: style, types and the fast tests

test-fast: $(INSTALLED)
	$(TEST)

test-slow: $(INSTALLED)  ## what takes long: jobs of several processes, killed runs, other trainers, thousands of inputs
	$(TEST) -m slow

test-all: test test-slow docs  ## what .ci/run runs

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy looks for edm2.networks inside edm2/, so it gets a folder in which every folder stands where it is installed.
types: $(INSTALLED)
	rm -rf $(TYPES) && mkdir -p $(TYPES)/edm2
	ln -s $(CURDIR)/edm2/* $(addprefix $(CURDIR)/,$(FOLDERS)) $(TYPES)/edm2/
	cd $(TYPES) && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p edm2

docs: $(INSTALLED)  ## links, images, named tests and commands of the README and docs/
	$(BIN)/python tests/check_docs.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(INSTALLED)  ## check style and types at every commit
	$(BIN)/pre-commit install

$(INSTALLED): setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@
