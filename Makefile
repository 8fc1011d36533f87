# The two commands that a newcomer needs: each makes .venv, installs, and does its job.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types slow smoke results clean

demo: .venv/installed
	$(BIN)/python -m atlasd.tools.demo --out out

# A file stays on one core, so that what its tests share is made once; a process takes up to 2 GB.
test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile --durations 25

# Seven tasks of ATLAS on Open-AVS; where its packages cannot be had, the tests on the toy world stand in.
smoke: .venv/installed
	@if $(BIN)/atlasd dataset build out/open-avs-ci --size ci; then \
		$(BIN)/atlasd evaluate smoke --data out/open-avs-ci --out out/smoke --set threads=2 && \
		$(BIN)/atlasd report out/smoke --out out/smoke-report; \
	else echo "smoke: skipped, Open-AVS cannot be composed here"; fi

# The tables and figures of docs/results.md from nothing, in some two hours of two cores. Cut short, it goes on.
DATA ?= data/open-avs
WORKERS ?= 2
results: .venv/installed
	$(BIN)/atlasd dataset build $(DATA) --size standard
	$(BIN)/atlasd evaluate open-avs --data $(DATA) --out runs/open-avs --workers $(WORKERS)
	$(BIN)/atlasd evaluate ablations --data $(DATA) --out runs/open-avs --workers $(WORKERS)
	$(BIN)/atlasd report runs/open-avs --out runs/report

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv build out *.egg-info

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); atlasd needs 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

.venv/installed: pyproject.toml | .venv/python
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/python
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch .venv/installed $@
