# A checkout, Python 3.11 or newer and make are enough: each target makes .venv and installs what it needs by itself.
# PYTHON=/path/to/python chooses the interpreter. Only POSIX make and sh are used, and paths stay relative.

.POSIX:
.PHONY: help demo test test-full nightly bench bench-report lint format contract install clean

VENV = .venv
BIN = $(VENV)/bin

help:
	@echo 'make demo       a whole trading day over MQTT, settled and replayed, in about a minute'
	@echo 'make test       ruff, mypy --strict and the tests, on each Python from 3.11 that this machine has'
	@echo 'make test-full  the tests marked slow as well, on one Python'
	@echo 'make nightly    test-full with many more and fresh random examples'
	@echo 'make bench      the benchmarks, with the circumstances they were run under'
	@echo 'make bench-report  all benchmarks on one page, build/benchmarks/report.html; ARGS=--quick for a trial'
	@echo 'make lint       ruff and mypy only'
	@echo 'make format     let ruff format the code and repair what it can'
	@echo 'make contract   write docs/asyncapi.yaml anew from the code'
	@echo 'make install    only make .venv and install; then .venv/bin/dojima --help'
	@echo 'make clean      remove .venv*, caches and build products (never dojima-data)'
	@echo ''
	@echo 'PYTHON=/path/to/python3.12 make …  chooses the interpreter.'

install:
	@sh deploy/venv.sh $(VENV)

demo: install
	@$(BIN)/dojima demo $(ARGS)

test: install
	@$(BIN)/python deploy/test_matrix.py $(ARGS)

test-full: install
	@$(BIN)/python -m pytest -m 'slow or not slow' $(ARGS)

nightly: install
	@DOJIMA_PROFILE=nightly $(BIN)/python -m pytest -m 'slow or not slow' $(ARGS)

bench: install
	@$(BIN)/dojima bench $(ARGS)

bench-report: install
	@$(BIN)/python -m benchmarks.report $(ARGS)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

contract: install
	@$(BIN)/python -m tests.project.asyncapi >docs/asyncapi.yaml.new && mv docs/asyncapi.yaml.new docs/asyncapi.yaml

clean:
	rm -rf .venv .venv-3.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks build dist dojima.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
