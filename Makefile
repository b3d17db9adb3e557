# One target per task; everything below runs from a fresh clone on a bare machine.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PROTOS := $(wildcard protos/mint_contracts/*.proto)

# make demo CONTEXT=my-cluster MINT_VALUES=my-values.yaml: on your own cluster, with images that it can pull.
CONTEXT_FLAG := $(if $(CONTEXT),--context $(CONTEXT))
export MINT_VALUES

# Every test process imports the same modules. If the environment forbids Python to keep the compiled files (as Python's
# images do), each process compiles 3,000 files again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: demo
demo: env kernels ## Cluster, chart, samples, then the same questions to three adapters and the bare base
	@$(BIN)/python -m e2e.demo up $(CONTEXT_FLAG)

.PHONY: demo-train
demo-train: env kernels ## The demo, then eight policies trained alongside it, their rewards, and what they have learnt
	@$(BIN)/python -m e2e.demo train $(CONTEXT_FLAG)

.PHONY: demo-down
demo-down: ## Delete the demo's cluster; on a cluster of your own, remove what the demo created there
	@if test -x $(BIN)/python; then $(BIN)/python -m e2e.demo down $(CONTEXT_FLAG); fi

.PHONY: test
test: env tools kernels lint unit e2e ## Every check and test: lint, unit, component, and end-to-end on a real cluster

.PHONY: env
env: $(STAMP) ## Create the virtual environment with everything that development needs

$(STAMP): pyproject.toml constraints.txt
	@echo "env: installing the pinned dependencies into $(VENV) (a minute or two the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@echo "env: compiling what engines import, which pods of a native cluster see but cannot write (half a minute)"
	@$(BIN)/python -c "import mint_engine.process, mint_gateway.process, mint_operator.process"
	@touch $(STAMP)

.PHONY: tools
tools: env ## Install or build what tests need in addition to Python: Kubernetes, helm, etcd, containerd, redis-server, chromium, samples
	@$(BIN)/python -m e2e.cluster tools
	@$(BIN)/python -m e2e.samples

.PHONY: kernels
kernels: env ## Compile the engine's kernels, if there is a C++ compiler and they are older than their sources
	@$(BIN)/python engine/mint_engine/kernels/compile.py

.PHONY: lint
lint: env ## Check with formatter, linter, type checker and import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: env ## Format, and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# make images REPOSITORY=registry.example/mint TAG=0.1.0 BUILD_FLAGS="--build-arg PIP_EXTRA_INDEX_URL=...": for your
# registry, with a smaller torch.
REPOSITORY ?= mint
TAG ?= dev
.PHONY: images
images: ## Build the two images of the Dockerfile with docker, podman or buildah, whichever is installed
	@if docker info >/dev/null 2>&1; then build="docker build"; \
	elif command -v podman >/dev/null; then build="podman build"; \
	elif command -v buildah >/dev/null; then build="buildah build --layers"; \
	else echo "images: no Docker engine, podman or buildah found; install one of them" >&2; exit 1; fi; \
	for target in control engine; do $$build --target $$target --tag $(REPOSITORY)/$$target:$(TAG) $(BUILD_FLAGS) .; done

# Several torch processes share a machine's few cores in tests: threads that wait must sleep, not spin.
unit e2e: export OMP_WAIT_POLICY := PASSIVE

.PHONY: unit
unit: env tools kernels ## Run unit, property and component tests, one file at a time on each core
	$(BIN)/pytest tests --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: e2e
e2e: env tools kernels ## Run the end-to-end tests on a real cluster
	$(BIN)/pytest e2e

# make bench ONLY=serve ROUNDS=5 DEVICE=cuda MODEL=path/to/base: a part, more rounds, another device, another base.
.PHONY: bench
bench: env tools kernels ## Measure the README's performance goals against other systems (ROUNDS=1: about 40 minutes on two idle cores)
	$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(DEVICE),--device $(DEVICE)) $(if $(MODEL),--model $(MODEL))

# make bench-scale QUICK=1 ONLY=catalog: a hundredth of it, or a part.
.PHONY: bench-scale
bench-scale: env tools ## Measure the control plane's goals at scale: a million adapters, a thousand waves
	$(BIN)/python -m tests.bench.scale $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

.PHONY: protos
protos: env ## Generate the protobuf and gRPC code from protos/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos --python_out=protos --mypy_out=quiet:protos \
	  --grpc_python_out=protos --mypy_grpc_out=quiet:protos $(PROTOS)

.PHONY: clean
clean: demo-down ## Remove everything built here (the cache of binaries and samples stays)
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
