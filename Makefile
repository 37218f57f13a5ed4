# `make demo` and `make test` are all that a newcomer needs; most other targets are parts of these.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
INCLUDE := -I proto -I third_party/protovalidate -I third_party/googleapis

.PHONY: demo test check lint types contracts gen gen-check diagram unit properties image bench crash simulate clean

demo: .venv/installed  ## Run real turns over the whole mesh, in one process.
	$(BIN)/agentshell demo

test: check unit  ## Everything that CI runs.

check: lint types contracts gen-check

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv: a few minutes, the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo

types: .venv/installed
	$(BIN)/basedpyright

# Looks for breaking changes since main; on main itself, since the commit before.
contracts: .venv/installed
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code proto
	@base=$$(git rev-parse -q --verify main || git rev-parse HEAD); \
	if [ "$$base" = "$$(git rev-parse HEAD)" ]; then base=$$(git rev-parse -q --verify HEAD~1 || echo "$$base"); fi; \
	echo "$(BIN)/buf breaking --against $$base"; \
	$(BIN)/buf breaking --against ".git#ref=$$base"

gen: .venv/installed  ## Generate gen/ from proto/, and the manifest's JSON Schema from its models.
	rm -rf gen/python/kfm gen/python/buf
	$(BIN)/python -m grpc_tools.protoc $(INCLUDE) \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --python_out=gen/python --mypy_out=quiet:gen/python \
	  third_party/protovalidate/buf/validate/validate.proto $$(find proto -name '*.proto' | sort)
	$(BIN)/python -m grpc_tools.protoc $(INCLUDE) \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --grpc_python_out=gen/python \
	  --mypy_grpc_out=quiet:gen/python $$(find proto -name '*_service.proto' | sort)
	$(BIN)/python -m grpc_tools.protoc $(INCLUDE) --include_source_info \
	  --descriptor_set_out=gen/python/kfm/contract.binpb $$(find proto -name '*.proto' | LC_ALL=C sort)
	$(BIN)/python -m agentshell.personality.manifest_schema personalities/manifest.schema.json

gen-check: gen
	@test -z "$$(git status --porcelain gen personalities/*.json)" || { git status --short gen personalities/*.json; \
	echo "generated files differ from what is committed: commit what make gen made"; exit 1; }

diagram: .venv/installed  ## Draw the state diagrams of ARCHITECTURE.md from the code.
	$(BIN)/python -m agentshell.turn.diagram ARCHITECTURE.md

unit: .venv/installed image
	$(BIN)/pytest

properties: .venv/installed  ## Run the property tests with fresh examples (SEED=).
	$(BIN)/pytest -q -m hypothesis --hypothesis-profile=others $(if $(SEED),--hypothesis-seed=$(SEED))

image: .venv/installed  ## Build the interpreter of the tools' sandbox, once per machine.
	$(BIN)/python -m agentshell.tool.sandbox.image

# ARGS=--quick shows that it runs, ARGS='stream resume' runs some parts. benchmarks/README.md names peers that need a server.
bench: .venv-bench/installed  ## Measure it beside its peers, on an otherwise idle machine.
	.venv-bench/bin/python -m benchmarks $(ARGS)

.venv-bench/installed: pyproject.toml constraints.txt  # Holds how many seconds installing our own part took, which is one of the figures.
	rm -rf .venv-bench
	@began=$$(date +%s); set -x; $(PYTHON) -m venv .venv-bench && \
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . && \
	seconds=$$(( $$(date +%s) - began )) && \
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]' && \
	echo $$seconds > $@

crash: .venv/installed  ## Kill the mesh at its journal's boundaries and at random, and check its promises (SEED= KILLS= LOG=).
	$(BIN)/python -m tests.crash.explorer --seed $(or $(SEED),1) --kills $(or $(KILLS),100) --log $(or $(LOG),postgres)

simulate: .venv/installed  ## Drive the engine's pure parts through many schedules (EXAMPLES=).
	$(BIN)/python -m tests.simulation --examples $(or $(EXAMPLES),1000000) --processes 2

clean:
	rm -rf .venv .venv-bench .pytest_cache .ruff_cache .import_linter_cache .hypothesis
