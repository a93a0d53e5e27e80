PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: sweep test test-all lint bench aot clean

sweep: .venv/installed
	$(BIN)/accelerate launch sweep.py k=2,4,8,16

test: lint
	$(BIN)/python -m pytest -n 2 -m "not heavy"

test-all: .venv/installed
	$(BIN)/python -m pytest -n 2 -m heavy

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python benchmarks/encoder.py
	-$(BIN)/python benchmarks/kernels.py

aot: .venv/installed
	$(BIN)/python benchmarks/aot.py

.venv/installed: pyproject.toml setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "tefusion needs Python 3.10 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs
