# One command for each thing. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := requirements/operator.lock requirements/trainer.lock requirements/dev.lock

.PHONY: help setup lock lint test test-unit
help: ## this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(VENV)/.installed ## the virtual environment, from the lock file
$(VENV)/.installed: requirements/dev.lock pyproject.toml
	@echo "== installing the locked dependencies into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install -q "$$(grep -oE '^uv==[0-9.]+' requirements/dev.lock)"
	@$(BIN)/uv pip sync -q --python $(BIN)/python --require-hashes requirements/dev.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

UV_COMPILE = uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
lock: ## resolve the dependencies anew (after a change of pyproject.toml)
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q uv; }
	@PATH="$(CURDIR)/$(BIN):$$PATH"; \
	$(UV_COMPILE) --extra operator --extra local --extra trainer --extra dev -o requirements/dev.lock; \
	$(UV_COMPILE) --extra operator -c requirements/dev.lock -o requirements/operator.lock; \
	$(UV_COMPILE) --extra trainer -c requirements/dev.lock --no-emit-package torch -o requirements/trainer.lock

lint: setup ## ruff, mypy, import contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=operator:trainer_image $(BIN)/lint-imports

REGISTRY ?=
TAG ?=
.PHONY: dashboard install-yaml
dashboard: setup ## the chart's Grafana dashboard, from charts/dashboard.py
	@$(BIN)/python charts/dashboard.py
install-yaml: setup ## charts/install.yaml, from the chart (REGISTRY=, TAG=: of your images)
	@cp crds/*.yaml charts/lepton-operator/files/crd.yaml
	@$(BIN)/python charts/install_yaml.py --registry "$(REGISTRY)" --tag "$(TAG)"
