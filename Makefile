# Two commands matter: `make demo` and `make test`. Both set up .venv from the lock first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
LOCK := requirements/dev.txt
PROTO := src/moorage/csi/proto
PYTEST_FLAGS ?=
BENCH_FLAGS ?=

.PHONY: demo test bench bench-micro check docs format help lock proto setup clean
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## the virtual environment in .venv, from the lock

$(STAMP): $(LOCK) pyproject.toml
	@PYTHON="$(PYTHON)" sh tools/setup.sh "$(VENV)" "$(LOCK)"
	@touch $@

demo: $(STAMP) ## the tour: create, mount, snapshot, restore, expand, delete; ends with "moorage works"
	@$(BIN)/python tools/demo.py

check: $(STAMP) ## formatter, linter, types, import contracts, tests that load (fast; before each commit)
	@$(BIN)/ruff format --check --quiet src tests tools bench
	@$(BIN)/ruff check --quiet src tests tools bench
	@$(BIN)/lint-imports --no-logo >/tmp/moorage-imports.$$$$ 2>&1 || { cat /tmp/moorage-imports.$$$$; rm -f /tmp/moorage-imports.$$$$; exit 1; }; rm -f /tmp/moorage-imports.$$$$
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m pytest --collect-only -qq -p no:cacheprovider >/tmp/moorage-collect.$$$$ 2>&1 || { tail -n 30 /tmp/moorage-collect.$$$$; rm -f /tmp/moorage-collect.$$$$; exit 1; }; rm -f /tmp/moorage-collect.$$$$
	@echo "check: all good"

test: $(STAMP) check ## everything the project has
	@$(BIN)/python -m pytest $(PYTEST_FLAGS)

bench: $(STAMP) ## a fresh `moorage dev` at work, beside a peer's figures (about a minute; needs two free cores to mean much)
	@$(BIN)/python bench/load.py $(BENCH_FLAGS)

bench-micro: $(STAMP) ## hot paths one by one, with pyperf (some minutes)
	@$(BIN)/python bench/micro.py $(BENCH_FLAGS)

format: $(STAMP) ## rewrite the sources in the project's format
	@$(BIN)/ruff format --quiet src tests tools bench
	@$(BIN)/ruff check --fix --quiet src tests tools bench

lock: ## write the lock anew from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --python-version 3.11 --group dev pyproject.toml -o $(LOCK)

docs: $(STAMP) ## write docs/api.md and docs/cli.md anew from the route table and the parsers
	@$(BIN)/python tools/write_api_docs.py

proto: $(STAMP) ## generate the CSI modules from src/moorage/csi/proto/csi.proto
	$(BIN)/python -m grpc_tools.protoc -Isrc --python_out=src --pyi_out=src src/moorage/csi/proto/csi.proto

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
