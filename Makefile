# Every target installs what it needs first. PYTHON chooses the interpreter that creates .venv.
PYTHON ?= python3
BIN := .venv/bin
NEWEST := .venv-newest
PYTEST := python -m pytest --numprocesses 2 --dist worksteal

.PHONY: install demo test test-newest check

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,report,track,peft]'
	-$(BIN)/python -m longwave.benchmarks.warm_up
	touch $@

# constraints.txt with the other end of each range that constraints-newest.txt names.
$(NEWEST)/installed: pyproject.toml constraints.txt constraints-newest.txt
	$(PYTHON) -m venv $(NEWEST)
	awk -F == 'NR == FNR { newest[$$1] } NR == FNR || !($$1 in newest)' constraints-newest.txt constraints.txt > $(NEWEST)/constraints.txt
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(NEWEST)/constraints.txt --editable '.[dev,report,track,peft]'
	touch $@

demo: install
	$(BIN)/longwave demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST)

test-newest: $(NEWEST)/installed
	OMP_NUM_THREADS=1 $(NEWEST)/bin/$(PYTEST) tests/model tests/training tests/evaluation tests/verification/test_certificate.py tests/test_cli.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
