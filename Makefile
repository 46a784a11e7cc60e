# `make help` lists the targets. Each makes what it needs; `make book` and `make test` are the two that matter.

# The versions of Python that the lock is checked for, and how one says whether it is among them.
IN_RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do "$$p" -c '$(IN_RANGE)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
JOBS ?= 2
# Tests in two processes, each with a half of them in one piece, so that what a file's tests share is made once.
# Which ends first takes from the other; else the runs of whole chapters, the last tests, would all fall to one.
BESIDE := -n 2 --dist worksteal
PORT ?= 8000
API_PORT ?= 8001
PIPELINE ?= _build/pipeline

# The checkout's own packages come first, whatever is installed.
export PYTHONPATH := $(CURDIR)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests run side by side; more threads in each would only fight for the cores.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help env contents book execute html serve serve-api test unit gpu-check lint collect notebook-tests accept references stamp tidy lock lock-check bench bench-peers clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

env: $(STAMP) ## make the environment in .venv, from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11, 3.12 or 3.13 was not found; install one, or say where it is: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@"$(PYTHON)" -c '$(IN_RANGE)' 2>/dev/null || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13: $$("$(PYTHON)" --version 2>&1)" >&2; exit 1; }
	@{ [ -x $(BIN)/pip ] && $(BIN)/python -c '$(IN_RANGE)'; } || "$(PYTHON)" -m venv --clear $(VENV) || { echo "cannot make a virtual environment with $(PYTHON); on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

# Before anything is executed: the build takes only what the contents list.
contents: env
	@$(BIN)/python -m book.contents

book: contents execute html ## execute what has changed, build the pages, say where to open them
	@echo "The book: file://$(CURDIR)/_build/html/index.html (or: make serve)"

execute: env ## execute the notebooks whose copies are missing or stale
	$(BIN)/python -m book.execute --jobs $(JOBS)

# Built afresh and apart, then put in place whole: a failed build leaves no page that looks finished.
html: contents ## build the pages from the executed notebooks
	$(BIN)/python -m book.execute --check
	@rm -rf _build/site
	@mkdir -p _build/site
	@echo "building the pages"
	@$(BIN)/jupyter-book build . --path-output _build/site -W --keep-going -n --quiet >_build/site/log 2>&1 || { cat _build/site/log; exit 1; }
	@rm -rf _build/html
	@mv _build/site/_build/html _build/html

serve: ## show the built book on this machine
	@[ -f _build/html/index.html ] || { echo "there is no built book; run make book" >&2; exit 1; }
	@echo "http://127.0.0.1:$(PORT)/"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

# On this machine alone; RECSYS_API_KEY sets a key. A pipeline is what Pipeline.save_pretrained wrote.
serve-api: env ## serve the saved pipeline PIPELINE as recommendations over HTTP
	@[ -f "$(PIPELINE)/config.json" ] || { echo "there is no saved pipeline in $(PIPELINE): chapter 6 saves one (make execute); or say where: make serve-api PIPELINE=folder" >&2; exit 1; }
	@$(BIN)/python -m recsys_lib.serve "$(PIPELINE)" --port $(API_PORT)

# Quick checks first, so that a mistake shows early; the last run covers every test there is, each of them once.
test: lint collect notebook-tests book ## everything: checks, execution, build, all tests
	$(BIN)/python -m pytest $(BESIDE) tests

unit: env ## the library's tests, but for the slowest; some minutes
	$(BIN)/python -m pytest -q $(BESIDE) -m "not slow" tests/library

# Status 3: there is no GPU, and the command has said so.
gpu-check: env ## the library's quick tests and one chapter on this machine's GPU, if it has one
	@$(BIN)/python -m book.gpu_check || [ $$? -eq 3 ]

notebook-tests: env ## the shape of the committed notebooks
	$(BIN)/python -m pytest -q tests/notebooks/test_notebooks.py

lint: env ## ruff, mypy, import-linter, the notebooks' tidy form and the contents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m book.notebooks --check

# Running one folder does not tell it: two test files of one name cannot be collected together.
collect: env ## whether all tests can be collected side by side
	@found=$$($(BIN)/python -m pytest -q --collect-only tests 2>&1) || { echo "$$found"; exit 1; }

accept: env ## take the present headline results as the accepted ones; read the diff
	$(BIN)/python -m book.accept

references: env ## measure the reference values of the models' tests anew; read the diff
	$(BIN)/python tests/library/references.py

stamp: env ## write the repository's address, from pyproject.toml, wherever it must be repeated
	$(BIN)/python -m book._ext.repository_address
	$(BIN)/python -m book.contents --map
	$(BIN)/python -m book.notebooks

# What cannot be fixed must not keep the rest from being formatted; a fix may need formatting again.
tidy: stamp ## bring notebooks and code into their tidy form
	@status=0; for step in "format" "check --fix" "format --quiet"; do \
	  echo "$(BIN)/ruff $$step ."; $(BIN)/ruff $$step . || status=$$?; \
	done; exit $$status

lock: env ## renew requirements.lock
	$(BIN)/python -m book.lock

lock-check: env ## ask the package index whether every pin of requirements.lock has a wheel for each Python
	$(BIN)/python -m book.lock --check

bench: env ## measure speed and memory
	@set -e; for script in benchmarks/*.py; do echo "$$script"; OMP_NUM_THREADS=2 $(BIN)/python "$$script"; done

# The peers' environments and every finished measurement are kept; a run that was stopped goes on. PEERS=--smoke is tiny.
bench-peers: env ## measure beside other libraries, each in an environment of its own; an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers $(PEERS) $(if $(PEERS),,--record book/recorded/peers.json)

clean: ## remove the products; the environment and downloaded data stay
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
