# `make up` from a fresh clone to a chat with Oh-LoRA; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
WORKERS ?= 2
export PYTHONUTF8 := 1
# without it each of many processes would compile torch and transformers again, for a quarter of a minute
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install up down status doctor test test-up test-slow lint format types check lock clean clean-venv

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo '  ARGS="--set serving.port=3001" is passed on by up and doctor'

install: $(STAMP)  ## make .venv from the lock file

$(STAMP): requirements.lock pyproject.toml
	@scripts/install.sh "$(PYTHON)" "$(VENV)"
	@touch $@

up: install  ## pipeline, bento, Prefect UI, MLflow UI, chat page
	@$(BIN)/ohlora up $(ARGS)

down:  ## stop everything that up started
	@if [ -x $(BIN)/ohlora ]; then $(BIN)/ohlora down; else echo "nothing is installed, nothing runs"; fi

status: install  ## what runs, and where
	@$(BIN)/ohlora status

doctor: install  ## check this machine
	@$(BIN)/ohlora doctor $(ARGS)

# One thread for each worker, or they wait for each other.
test: install  ## the test suite (under a quarter of an hour on 2 cores, no network)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not end_to_end and not slow and not gpu and not hub" --durations=25 $(ARGS)

test-up: install  ## the whole line on real servers, with tiny networks: some ten minutes
	$(BIN)/python -m pytest -m end_to_end --durations=10 tests/test_end_to_end.py $(ARGS)

test-slow: install  ## tests that train real models for minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: install  ## ruff: lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install  ## ruff: fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install  ## mypy on ohlora/
	$(BIN)/mypy

check: lint types test test-up  ## all that CI checks

lock: install  ## compile requirements.in into requirements.lock
	$(BIN)/uv pip compile -q --python-version 3.11 --no-emit-index-url --no-emit-find-links requirements.in -o requirements.lock

clean: down  ## remove artifacts, servers' state and caches (data and .venv stay)
	rm -rf artifacts .ohlora .dvc/cache .dvc/tmp

clean-venv: down  ## remove .venv
	rm -rf $(VENV)
