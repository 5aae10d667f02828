# One command for each thing. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := requirements/operator.lock requirements/trainer.lock requirements/dev.lock

.PHONY: help setup lock lint test test-unit test-cluster proof cluster-up cluster-down cluster-status cluster-prepare images push demo
help: ## this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(VENV)/.installed ## the virtual environment, from the lock file
$(VENV)/.installed: requirements/dev.lock pyproject.toml
	@echo "== installing the locked dependencies into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install -q "$$(grep -oE '^uv==[0-9.]+' requirements/dev.lock)"
	@$(BIN)/uv pip sync -q --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

UV_COMPILE = uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
lock: ## resolve the dependencies anew (after a change of pyproject.toml)
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q uv; }
	@PATH="$(CURDIR)/$(BIN):$$PATH"; \
	$(UV_COMPILE) --extra operator --extra local --extra trainer --extra dev -o requirements/dev.lock; \
	$(UV_COMPILE) --extra operator -c requirements/dev.lock -o requirements/operator.lock; \
	$(UV_COMPILE) --extra trainer-image -c requirements/dev.lock -o requirements/trainer.lock

lint: setup ## ruff, mypy, import contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=operator:trainer_image $(BIN)/lint-imports

test: setup ## everything, from a bare machine: lint, unit tests, local mode, the real cluster
	@$(BIN)/python -m tests.run

test-unit: setup ## the unit tests: under a minute, no cluster
	@$(BIN)/python -m pytest -q -n auto --dist worksteal tests/unit

proof: setup ## the long proofs of the trainer: bars on real data, every layout, S3 (half an hour; what is missing is fetched)
	@$(BIN)/python -m pytest -q tests/proof

test-cluster: setup ## every test of the real cluster
	@$(PYTHON) -m cluster up && $(PYTHON) -m cluster images && $(BIN)/python -m pytest tests/cluster

cluster-up: ## a Kubernetes: LEPTON_KUBECONFIG's, else kind, else one embedded in this machine (KWOK_NODES=n for more nodes)
	@$(PYTHON) -m cluster up

cluster-prepare: ## builds and fetches beforehand all that the cluster, the images and the tests need, once per machine
	@$(PYTHON) -m cluster prepare

cluster-down: ## takes it down, leaving nothing of it behind
	@$(PYTHON) -m cluster down

cluster-status: ## what runs of it
	@$(PYTHON) -m cluster status

demo: ## all of it on a real cluster: a job that loses worker 0 in the middle and goes on
	@$(PYTHON) -m demo.on_cluster

.PHONY: demo-local
demo-local: setup ## the same on this machine alone, without a cluster or root, in under a minute
	@$(BIN)/python -m demo.local

images: ## builds both images and brings them into the cluster
	@$(PYTHON) -m cluster images

push: ## builds both images and pushes them: make push REGISTRY=example.org/team [TAG=1.2.3]
	@test -n "$(REGISTRY)" || { echo "make push REGISTRY=example.org/team [TAG=1.2.3]" >&2; exit 2; }
	@$(PYTHON) -m cluster push "$(REGISTRY)" $(if $(TAG),--tag "$(TAG)")

.PHONY: dashboard install-yaml crd
crd: setup ## spec.trainer.builtin of the CRD, from the trainer's models, and what is made of the CRD
	@PYTHONPATH=operator:trainer_image $(BIN)/python charts/builtin_schema.py
	@$(MAKE) --no-print-directory install-yaml
dashboard: setup ## the chart's Grafana dashboard, from charts/dashboard.py
	@$(BIN)/python charts/dashboard.py
install-yaml: setup ## charts/install.yaml, from the chart (REGISTRY=, TAG=: of your images)
	@cp crds/*.yaml charts/lepton-operator/files/crd.yaml
	@$(BIN)/python charts/install_yaml.py --registry "$(REGISTRY)" --tag "$(TAG)"
