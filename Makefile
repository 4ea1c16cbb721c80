# `make demo` and `make test` need Python 3.11 and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_HOME ?= demo
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo ui test lint bench trial clean

help: ## what each target does
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(READY) .env ## create the environment from the pinned versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,cluster,postgres]'
	@touch $(READY)

# `dg dev` in this checkout then shows the home that `wsi-assets ui` uses.
HOME_DIR := $(or $(DAGSTER_HOME),$(or $(WSI_STORAGE_DIR),$(CURDIR)/storage)/dagster_home)
.env: $(READY)
	@mkdir -p "$(HOME_DIR)"
	@test -f "$(HOME_DIR)/dagster.yaml" || cp dagster.yaml "$(HOME_DIR)/dagster.yaml"
	@test -f .env || echo 'DAGSTER_HOME=$(HOME_DIR)' > .env

demo: $(READY) ## make a small cohort and run the whole pipeline on it
	$(BIN)/wsi-assets demo --home $(DEMO_HOME)

ui: $(READY) ## open the Dagster UI on ./storage, or on the demo as long as there is nothing in it
	$(BIN)/wsi-assets ui $$(test -n "$$WSI_STORAGE_DIR" -o -d storage/slides -o ! -d $(DEMO_HOME) || echo --home $(DEMO_HOME))

test: lint ## lint and run the tests
	$(BIN)/python -m pytest -m "not trial" -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY) ## measure every speed bar side by side; one table, also as bench.md and bench.json
	$(BIN)/python -m wsi_assets_tests.benchmarks

trial: $(READY) ## kills, full disks, thousands of damaged inputs: two to three hours; docs/trials.md has the last figures
	$(BIN)/python -m pytest -m trial -s --durations=0

clean: ## remove the environment and what the demo made
	rm -rf $(VENV) $(DEMO_HOME)
