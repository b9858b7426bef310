# Every target installs what it needs first. PYTHON chooses the interpreter that creates .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,report,track,peft]'
	-$(BIN)/python -m longwave.benchmarks.warm_up
	touch $@

demo: install
	$(BIN)/longwave demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
