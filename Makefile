# QuadRank: every target does its own set-up from the lock files. `make` alone prints this list.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
DATA ?= simulated
MODEL ?= qin
ROWS ?= 600000
USERS ?= 5000
ITEMS ?= 3000
TRIALS ?= 20
STUDY ?= $(DATA)-$(MODEL)
SET ?=
ROOT ?=
MODULE ?=
SAMPLE ?=

BIN := .venv/bin
QUADRANK := $(BIN)/quadrank
CONTRACT := conf/data/$(DATA).yaml
PRESET := conf/model/$(MODEL).yaml
# A file's tests stay in one process, which makes its module fixtures once; tests/conftest.py sorts long files first.
SPREAD := --dist loadfile --no-loadscope-reorder
OPTIONS = $(foreach s,$(SET),--set $(s)) $(if $(ROOT),--root $(ROOT))

.PHONY: help setup simulate features train test test-slow mutants tune export promote report mmctr bench lint format lock docs wheel clean

help:  ## this list
	@echo "QuadRank: click-through-rate ranking from behaviour logs and item vectors"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "  DATA=$(DATA) MODEL=$(MODEL) SET=\"train.epochs=3 model.dropout=0.2\" ROOT=<folder of the raw files>"
	@echo "  e.g. make train DATA=movielens SET=\"train.seed=2\""

# A torch that is already there (a GPU machine's) is kept: the environment then sees the system's packages.
.venv/.ready: requirements.lock requirements-torch.lock pyproject.toml
	@echo "setting up .venv from requirements.lock (about a minute)"
	@$(PYTHON) -m venv --clear $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) .venv
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -c 'import torch' 2>/dev/null || \
		$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements-torch.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

setup: .venv/.ready  ## make .venv from the lock files

simulate: .venv/.ready  ## write the simulated log into data/simulated (ROWS=600000 USERS=5000 ITEMS=3000)
	@$(QUADRANK) simulate --out data/simulated --rows $(ROWS) --users $(USERS) --items $(ITEMS)

features: .venv/.ready $(if $(filter simulated,$(DATA)),simulate)  ## raw tables -> feature set
	@$(QUADRANK) features --data $(CONTRACT) $(OPTIONS)

train: .venv/.ready $(if $(filter simulated,$(DATA)),simulate)  ## the whole job: features, train, evaluate, export, register
	@$(QUADRANK) run --data $(CONTRACT) --model $(PRESET) $(OPTIONS)

test: .venv/.ready  ## the whole test suite, offline
	@$(BIN)/python -m pytest -n 2 $(SPREAD) -m "not slow"

test-slow: .venv/.ready  ## the longer proofs, marked slow
	@$(BIN)/python -m pytest -n 2 $(SPREAD) -m slow

mutants: .venv/.ready  ## mutation scores of the modules where layers meet, forty minutes (MODULE=features/point_in_time/history.py)
	@$(BIN)/python -m tests.mutation.run $(if $(MODULE),--module $(MODULE)) $(if $(SAMPLE),--sample $(SAMPLE))

tune: .venv/.ready $(if $(filter simulated,$(DATA)),simulate)  ## hyperparameter sweep (TRIALS=20, STUDY=name), read in MLflow
	@$(QUADRANK) tune --data $(CONTRACT) --model $(PRESET) --study $(STUDY) --trials $(TRIALS) $(OPTIONS)

export: .venv/.ready  ## the newest run's checkpoint -> bundle (RUN=id for another)
	@$(QUADRANK) export --run $(or $(RUN),latest)

promote: .venv/.ready  ## gate the newest bundle, then make it champion and CURRENT (BUNDLE=folder)
	@$(QUADRANK) promote --bundle $(or $(BUNDLE),bundles/$(DATA)/NEWEST)

report: .venv/.ready  ## one HTML page of the newest run (RUN=id for another)
	@$(QUADRANK) report --run $(or $(RUN),latest)

mmctr: .venv/.ready  ## the WWW 2025 challenge, data to submission file (ROOT=folder of its files)
	@$(QUADRANK) train --data conf/data/mmctr.yaml --model conf/model/qin_paper.yaml --set train.precision=bf16 $(OPTIONS)
	@$(QUADRANK) submit --run latest

bench: .venv/.ready  ## the README's numbers, peers beside us in one run (BENCH=features)
	@$(QUADRANK) bench $(or $(BENCH),features)

lint: .venv/.ready  ## ruff and mypy
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: .venv/.ready  ## format and sort imports
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# torch itself is left out of the resolution (its CUDA needs with it); what its CPU build imports is named here.
lock: .venv/.ready  ## resolve requirements.lock again from pyproject.toml
	@$(BIN)/pip install --quiet uv
	@printf 'torch ; sys_platform == "none"\n' > .venv/without-torch.txt
	@printf 'filelock\nfsspec\njinja2\nnetworkx\nsetuptools\nsympy\ntyping-extensions\n' > .venv/needs-of-torch.txt
	@$(BIN)/uv pip compile pyproject.toml .venv/needs-of-torch.txt --extra dev --python-version 3.11 --universal \
	    --fork-strategy fewest --generate-hashes --quiet --override .venv/without-torch.txt --no-emit-package torch \
	    --custom-compile-command 'make lock' --no-annotate --output-file requirements.lock

docs: .venv/.ready  ## the pages of docs/ as a site in .site/; a broken link fails
	@$(BIN)/mkdocs build --quiet
	@echo "open .site/index.html"

wheel: .venv/.ready  ## the installable package, dist/quadrank-*.whl
	@$(BIN)/python -m hatchling build --target wheel

clean:  ## remove what the commands wrote (raw data in data/ other than the simulated log stays)
	rm -rf feature_sets runs bundles inspections benchmarks/results data/simulated mlartifacts mlflow.db* .mutants .mypy_cache .ruff_cache .pytest_cache .site build dist *.egg-info
