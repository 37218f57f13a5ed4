# `make demo` and `make test` are all that a newcomer needs; the others are their parts.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check lint types contracts gen gen-check unit bench clean

demo: .venv/installed  ## Run one real turn over the whole mesh, in one process.
	$(BIN)/agentshell demo

test: check unit  ## Everything that CI runs.

check: lint types contracts gen-check

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

diagram: .venv/installed  ## Draw the state diagrams of ARCHITECTURE.md from the code.
	$(BIN)/python -m agentshell.turn.diagram ARCHITECTURE.md

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo

types: .venv/installed
	$(BIN)/basedpyright

contracts: .venv/installed
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code proto

gen: .venv/installed  ## Generate gen/ from proto/.
	rm -rf gen/python/kfm gen/python/buf
	$(BIN)/python -m grpc_tools.protoc \
	  -I proto -I third_party/protovalidate -I third_party/googleapis \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=gen/python --mypy_out=quiet:gen/python \
	  third_party/protovalidate/buf/validate/validate.proto $$(find proto -name '*.proto' | sort)
	$(BIN)/python -m grpc_tools.protoc \
	  -I proto -I third_party/protovalidate -I third_party/googleapis \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --grpc_python_out=gen/python --mypy_grpc_out=quiet:gen/python \
	  $$(find proto -name '*_service.proto' | sort)
