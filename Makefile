# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# These read files wrongly after some other test of the suite in the same process, and pass by themselves.
ALONE := tests/teachers/test_offline.py tests/test_demo_data.py
.PHONY: setup demo test lint cubins clean

setup: $(VENV)/.ready

# A marker inside the environment: setup runs again when the environment or what it is made from changes.
$(VENV)/.ready: pyproject.toml CMakeLists.txt constraints.txt scripts/setup.sh $(wildcard cuda/*.cpp cuda/*.h cuda/host/*)
	PYTHON="$(PYTHON)" sh scripts/setup.sh $(VENV)
	@touch $@

demo: setup
	$(BIN)/featuresplat demo

test: setup lint
	$(BIN)/python -m pytest $(ALONE)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --reruns 2 $(ALONE:%=--ignore=%)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Every CUDA kernel for every architecture, by NVRTC and without a GPU: registers, spills, shared memory.
cubins: setup
	$(BIN)/python scripts/cubins.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
