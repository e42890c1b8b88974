# QuadRank: every target does its own set-up from the lock files. `make` alone prints this list.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
DATA ?= simulated
MODEL ?= qin
ROWS ?= 600000
USERS ?= 5000
ITEMS ?= 3000
# The simulated log has a sweep of minutes; data of your own have the whole space.
TRIALS ?= $(if $(filter simulated,$(DATA)),8,20)
SPACE ?= conf/$(if $(filter simulated,$(DATA)),spaces/quick,tune).yaml
STUDY ?= $(DATA)-$(MODEL)
SET ?=
ROOT ?=
WHY ?=
TORCH_INDEX ?=
CONFIRM ?=
UPGRADE ?=
MODULE ?=
SAMPLE ?=
PASTS ?=

# Another Python than the default has an environment of its own: make test PYTHON=python3.12 makes .venv-3.12.
ifeq ($(origin PYTHON),file)
VENV ?= .venv
else
VENV ?= .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
endif
VENV := $(VENV)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
QUADRANK := $(BIN)/quadrank
# The environment is ours: what is imported is compiled once. uv leaves that to the first import, and a shell that forbids
# it would let every command compile torch and MLflow anew, for half a minute (docs/training.md, the first preset).
unexport PYTHONDONTWRITEBYTECODE
CONTRACT := conf/data/$(DATA).yaml
PRESET := conf/model/$(MODEL).yaml
# A file's tests stay in one process, which makes its module fixtures once; tests/conftest.py sorts long files first.
SPREAD := --dist loadfile --no-loadscope-reorder
# SET and ROOT reach the commands as they were typed, through the environment: the shell sees no > of them.
override export SET := $(value SET)
override export ROOT := $(value ROOT)
override export WHY := $(value WHY)
# The options of a command are put into the shell's "$$@". A new setting of SET begins at a word `section.key=`, so that
# a value may hold spaces: SET="train.epochs=3 data.interactions.label=rating >= 4" is two settings.
OPTIONS = key='[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z0-9_-]+)+=([^=].*)?'; set --; \
	[[ $$SET =~ [^[:space:]](.*[^[:space:]])? ]]; rest=$${BASH_REMATCH[0]}; \
	while [[ $$rest =~ ^(.*[^[:space:]])[[:space:]]+($$key)$$ ]]; do \
	    set -- --set "$${BASH_REMATCH[2]}" "$$@"; rest=$${BASH_REMATCH[1]}; done; \
	[[ -z $$rest ]] || set -- --set "$$rest" "$$@"; \
	[[ -z $$ROOT ]] || set -- --root "$$ROOT" "$$@";

.PHONY: help setup simulate features train test test-slow mutants tune export promote rollback serve report mmctr bench lint format audit lock docs wheel clean clean-all

help:  ## this list
	@echo "QuadRank: click-through-rate ranking from behaviour logs and item vectors"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo '  DATA=simulated     a contract of conf/data: the simulated log is made on the spot, movielens_100k after'
	@echo '                     $(BIN)/quadrank download movielens_100k --yes (shows its terms first, without --yes)'
	@echo '  MODEL=qin          a preset of conf/model: $(basename $(notdir $(wildcard conf/model/*.yaml)))'
	@echo '  SET="train.epochs=3 data.interactions.label=rating >= 4"    settings over those of the files'
	@echo '  ROOT=FOLDER        where the raw files lie, if not where the contract says'
	@echo '  PYTHON=python3.12  another Python, in an environment of its own, .venv-3.12'
	@echo
	@echo '  make train                           make train DATA=movielens_100k MODEL=qin_plus'

# With another index of torch than the environment was made with, it is made again.
ifneq ($(TORCH_INDEX),$(if $(TORCH_INDEX),$(shell cat $(READY) 2>/dev/null)))
.PHONY: $(READY)
endif

$(READY): requirements.lock requirements-torch.lock pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "there is no $(PYTHON) here: make setup PYTHON=<a Python from 3.11 on>" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python %d.%d, and QuadRank needs 3.11 or later: make setup PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -m tools.environment --venv $(VENV) $(if $(TORCH_INDEX),--torch-index '$(TORCH_INDEX)')

setup: $(READY)  ## make .venv from the lock files (PYTHON=python3.12, TORCH_INDEX=address of an index of CPU builds)

simulate: $(READY)  ## write the simulated log into data/simulated (ROWS=600000 USERS=5000 ITEMS=3000)
	@$(QUADRANK) simulate --out data/simulated --rows $(ROWS) --users $(USERS) --items $(ITEMS)

features: $(READY) $(if $(filter simulated,$(DATA)),simulate)  ## raw tables -> feature set
	@$(OPTIONS) $(QUADRANK) features --data $(CONTRACT) "$$@"

train: $(READY) $(if $(filter simulated,$(DATA)),simulate)  ## the whole job: features, train, evaluate, export, register (PASTS=yes: users' pasts too)
	@$(OPTIONS) $(QUADRANK) run --data $(CONTRACT) --model $(PRESET) $(if $(filter yes,$(PASTS)),--pasts) "$$@"

test: $(READY)  ## the whole test suite, offline
	@$(BIN)/python -m pytest -n 2 $(SPREAD) -m "not slow"

test-slow: $(READY)  ## the longer proofs, marked slow
	@$(BIN)/python -m pytest -n 2 $(SPREAD) -m slow

mutants: $(READY)  ## mutation scores of the modules where layers meet, forty minutes (MODULE=features/point_in_time/history.py)
	@$(BIN)/python -m tests.mutation.run $(if $(MODULE),--module $(MODULE)) $(if $(SAMPLE),--sample $(SAMPLE))

tune: $(READY) $(if $(filter simulated,$(DATA)),simulate)  ## hyperparameter sweep (TRIALS=20, SPACE=conf/tune.yaml, STUDY=name), read in MLflow
	@$(OPTIONS) $(QUADRANK) tune --data $(CONTRACT) --model $(PRESET) --study $(STUDY) --trials $(TRIALS) --space $(SPACE) "$$@"

export: $(READY)  ## the newest run's checkpoint -> bundle (RUN=id for another, PASTS=yes: users' pasts too)
	@$(QUADRANK) export --run $(or $(RUN),latest) $(if $(filter yes,$(PASTS)),--pasts)

promote: $(READY)  ## gate the newest bundle, then make it champion and CURRENT (BUNDLE=folder)
	@$(QUADRANK) promote --bundle $(or $(BUNDLE),bundles/$(DATA)/NEWEST)

rollback: $(READY)  ## let the bundle that served before serve again (WHY="clicks fell", TO=run for another one)
	@$(QUADRANK) rollback --name $(DATA) $(if $(TO),--to '$(TO)') --why "$$WHY"

serve: $(READY)  ## answer ranking requests on port 8000 with the bundle that passed the gate last (BUNDLE=folder)
	@$(QUADRANK) serve --bundle $(or $(BUNDLE),bundles/$(DATA)/CURRENT)

report: $(READY)  ## one HTML page of the newest run (RUN=id for another)
	@$(QUADRANK) report --run $(or $(RUN),latest)

# The WWW 2025 challenge, data to submission file. Not in the list: its data needs a registration (docs/mmctr.md).
mmctr: $(READY)
	@$(OPTIONS) $(QUADRANK) train --data conf/data/mmctr.yaml --model conf/model/qin_paper.yaml --set train.precision=bf16 "$$@"
	@$(QUADRANK) submit --run latest

bench: $(READY)  ## the README's numbers, peers beside us in one run (BENCH=features)
	@$(QUADRANK) bench $(or $(BENCH),features)

lint: $(READY)  ## ruff and mypy
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(READY)  ## format and sort imports
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

audit: $(READY)  ## known vulnerabilities of what the lock pins, where their database answers
	@$(BIN)/python -m tools.audit

lock:  ## resolve requirements.lock again from pyproject.toml (UPGRADE=yes: to the newest versions)
	@$(PYTHON) -m tools.lock $(if $(filter yes,$(UPGRADE)),--upgrade)

docs: $(READY)  ## the pages of docs/ as a site in .site/; a broken link fails
	@$(BIN)/mkdocs build --quiet
	@echo "open .site/index.html"

wheel: $(READY)  ## the installable package, dist/quadrank-*.whl
	@$(BIN)/python -m hatchling build --target wheel

CACHES := .mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis .site build dist
WRITTEN := feature_sets runs jobs bundles status comparisons inspections benchmarks/results data/simulated mlartifacts mlflow.db*

clean:  ## remove the caches of tools and what they build; runs, bundles and the registry stay
	rm -rf $(CACHES)

clean-all: clean  ## remove all that the commands wrote, registry and champion too (CONFIRM=yes; without it, only say so)
ifeq ($(CONFIRM),yes)
	rm -rf $(WRITTEN)
else
	@echo "with CONFIRM=yes this is removed, the registry and the champion with it:"
	@du -shc $(wildcard $(WRITTEN)) /dev/null 2>/dev/null | grep -v /dev/null
	@exit 1
endif
