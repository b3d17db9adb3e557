# One entry per thing a person does; everything below runs from a fresh clone on a bare machine.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: env
env: $(STAMP) ## Make the virtual environment with everything that development needs

$(STAMP): pyproject.toml constraints.txt
	@echo "env: installing the pinned dependencies into $(VENV) (a minute or two the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

PROTOS := $(wildcard protos/mint_contracts/*.proto)

.PHONY: protos
protos: $(STAMP) ## Generate the protobuf and gRPC code from protos/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos --python_out=protos --mypy_out=quiet:protos \
	  --grpc_python_out=protos --mypy_grpc_out=quiet:protos $(PROTOS)
