# Every target sets up what it needs: a virtual environment in .venv with pinned packages.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test slow check setup

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(VENV)/bin/reverie train dreamer_v3 --preset cartpole --run runs/demo

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: check
	$(VENV)/bin/pytest --numprocesses 2 --dist loadfile

# Learning runs and long fault sweeps, which take about an hour.
slow: $(READY)
	$(VENV)/bin/pytest -m slow --timeout 7200 --numprocesses 2 --dist loadfile
