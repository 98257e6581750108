# Two commands: `make demo` sets everything up and runs the main job, `make test` passes every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STORE ?= demo/store
# The scripts of .venv name the folder that it was made in: in a clone that was moved it is made anew.
MOVED := $(shell test -e $(STAMP) && ! grep -qsF "$(realpath $(VENV))/bin/" $(BIN)/smearflow && echo yes)

.PHONY: demo test lint setup clean browser audit faults soak

setup: $(STAMP)

ifeq ($(MOVED),yes)
.PHONY: $(STAMP)
endif

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(if $(MOVED),--clear) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(STAMP)

demo: setup
	$(BIN)/smearflow demo --store $(DEMO_STORE)

test: setup
	$(BIN)/python -m pytest

# Kills a real server, scheduler, workers and nights, and compares what the next night makes of it.
faults: setup
	$(BIN)/python -m pytest tests/faults

# The same for hours, at random; prints a table (docs/reliability.md).
soak: setup
	$(BIN)/python -m benchmarks.soak --kills 200 --out demo/soak

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Known flaws of the locked packages, and secrets in what git tracks; the first says so where no advisory
# database can be reached.
audit: setup
	$(BIN)/python .ci/audit_packages.py
	$(BIN)/python .ci/secret_scan.py

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
