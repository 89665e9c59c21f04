# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.PHONY: setup demo test lint cubins clean

setup: $(VENV)/.ready

# A marker inside the environment: setup runs again when the environment or what it is made from changes.
$(VENV)/.ready: pyproject.toml CMakeLists.txt constraints.txt scripts/setup.sh $(wildcard cuda/*.cpp cuda/*.h cuda/host/*)
	PYTHON="$(PYTHON)" sh scripts/setup.sh $(VENV)
	@touch $@

demo: setup
	$(BIN)/featuresplat demo

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Every CUDA kernel for every architecture, by NVRTC and without a GPU: registers, spills, shared memory.
cubins: setup
	$(BIN)/python scripts/cubins.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
