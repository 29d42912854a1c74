# Every target sets up what it needs: a virtual environment in .venv with pinned packages.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test slow reliability soak check setup

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(VENV)/bin/reverie train dreamer_v3 --preset cartpole --run runs/demo

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: check
	$(VENV)/bin/pytest --numprocesses 3 --dist worksteal $(if $(TIMES),--times $(TIMES))  # tests wait for processes of theirs

# Learning runs and long sweeps of faults (200 kills, random streams, compiled against not), which take hours:
# `make slow PART=2/4` runs the second quarter.
PART ?= 1/1
slow: $(READY)
	$(VENV)/bin/pytest -m slow --part $(PART) --timeout 7200 --numprocesses 2 --dist worksteal

# Every test that docs/reliability.md names, quick or slow.
reliability: $(READY)
	$(VENV)/bin/pytest -m "" --timeout 7200 --numprocesses 2 --dist worksteal \
	    $$(grep -oE '[a-z_/]+\.py::\w+' docs/reliability.md | sort -u | sed 's|^|tests/|')

# A random fault a minute, in two runs that nobody helps: see docs/reliability.md.
MINUTES ?= 30
soak: $(READY)
	PYTHONPATH=. $(VENV)/bin/python tests/soak.py --minutes $(MINUTES) >> results/soak.jsonl
