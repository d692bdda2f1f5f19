# A checkout, Python 3.11 or newer and make are enough: each target makes .venv and installs what it needs by itself.
# PYTHON=/path/to/python chooses the interpreter. Only POSIX make and sh are used, and paths stay relative.

.POSIX:
.PHONY: help demo test test-full nightly mutants bench bench-report lint format contract install build clean

VENV = .venv
BIN = $(VENV)/bin

help:
	@echo 'make demo       a whole trading day over MQTT, settled and replayed, in about a minute'
	@echo 'make test       ruff, mypy --strict and the tests, compiled and not, on each Python from 3.11 that is here'
	@echo 'make test-full  the tests marked slow as well, on one Python'
	@echo 'make nightly    test-full with many more and fresh random examples'
	@echo 'make mutants    small changes to engine/matching: does a test notice each? Long; goes on where it was stopped'
	@echo 'make bench      the benchmarks, with the circumstances they were run under'
	@echo 'make bench-report  all benchmarks on one page, build/benchmarks/report.html; ARGS=--quick for a trial'
	@echo 'make lint       ruff and mypy only'
	@echo 'make format     let ruff format the code and repair what it can'
	@echo 'make contract   write docs/asyncapi.yaml anew from the code'
	@echo 'make install    only make .venv and install; then .venv/bin/dojima --help'
	@echo 'make build      compile the engine where a C compiler is; demo, test and bench do it by themselves'
	@echo 'make clean      remove .venv*, caches and build products (never dojima-data)'
	@echo ''
	@echo 'PYTHON=/path/to/python3.12 make …  chooses the interpreter.'

install:
	@sh deploy/venv.sh $(VENV)

build: install
	@$(BIN)/python deploy/build.py

demo: build
	@$(BIN)/dojima demo $(ARGS)

test: build
	@$(BIN)/python deploy/test_matrix.py $(ARGS)

test-full: build
	@$(BIN)/python -m pytest -m 'slow or not slow' $(ARGS)

nightly: build
	@DOJIMA_PROFILE=nightly $(BIN)/python -m pytest -m 'slow or not slow' $(ARGS)

mutants:
	@EXTRA=mutation sh deploy/venv.sh $(VENV)-mutants
	@$(VENV)-mutants/bin/python -m tests.mutants.run $(ARGS)

bench: build
	@$(BIN)/dojima bench $(ARGS)

bench-report: build
	@$(BIN)/python -m benchmarks.report $(ARGS)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

contract: install
	@DOJIMA_BACKEND=interpreted $(BIN)/python -m tests.project.asyncapi >docs/asyncapi.yaml.new || \
		{ rm -f docs/asyncapi.yaml.new; exit 1; }
	@mv docs/asyncapi.yaml.new docs/asyncapi.yaml

clean:
	find engine . -maxdepth 1 \( -name '*.so' -o -name '_build*.json' \) -type f -exec rm -f {} +
	find engine/matching -name '*.so' -type f -exec rm -f {} +
	rm -rf .venv .venv-3.* .venv-mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks build dist dojima.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
