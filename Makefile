# `make demo`, `make test` and `make check` set everything up by themselves, in .venv.
# torch: PyPI's build for Linux brings CUDA; for a smaller one set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,\
	$(shell $(p) -c "import sys; assert (3, 11) <= sys.version_info[:2] < (3, 14); print('$(p)')" 2>/dev/null)))
OUT ?= build/demo
# What the tests prune. In a folder of its own: where torchvision doesn't fit the build of torch, others would fail on it.
NETWORKS := timm==1.0.31 torchvision==0.28.0

.PHONY: help demo test check format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    compress, build, measure and judge the bundled model; the report is $(OUT)/report.html"
	@echo "make test    all tests"
	@echo "make check   lint and types"
	@echo "make format  format the code"
	@echo "make clean   remove what the others made"

$(VENV)/ready: pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "edgekit needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -q pip; }
	$(BIN)/python -m pip install -q --upgrade 'pip>=24'
	$(BIN)/python -m pip install -q -e '.[all,dev]'
	$(BIN)/python -m pip install -q --upgrade --no-deps --target $(VENV)/timm $(NETWORKS)
	@touch $@

demo: $(VENV)/ready
	$(BIN)/edgekit run examples/fashion_mnist/recipe.yaml --out $(OUT)

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
