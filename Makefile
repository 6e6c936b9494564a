# Every target does its own set-up; a finished set-up is not done again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-nudenet campaign reference check docs clean

demo: $(READY)
	$(BIN)/expunge demo --output runs/demo

# Two workers, each with one thread: faster than one with all of them.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Bad inputs, and kills at random moments: make campaign [INPUTS=1000] [KILLS=70] [SEED=N]
campaign: $(READY)
	cd tests && OMP_NUM_THREADS=1 nice ../$(BIN)/python -m campaigns \
		--inputs $(or $(INPUTS),1000) --kills $(or $(KILLS),70) $(if $(SEED),--seed $(SEED))

# NudeNet's wheel has AGPL-3.0 licence texts, so it is only installed when asked for.
test-nudenet: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[nudenet]'
	$(BIN)/python -m pytest tests/detectors/test_nudenet.py

# Our numbers beside those of the original programs: make reference CASES=DIR [MODELS=DIR] [ONLY=GLOB]
reference: $(if $(CASES),$(READY),no-cases)
	$(BIN)/python -m conformance '$(CASES)' $(if $(MODELS),--models '$(MODELS)') $(if $(ONLY),--only '$(ONLY)')

.PHONY: no-cases
no-cases:
	@echo "make reference needs CASES=DIR, a folder that holds cases" >&2
	@exit 2

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stubs in docs/api are made anew, so that none is left of a module that has moved.
docs: $(READY)
	rm -rf docs/api
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV): a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build docs/api
