# Everything a developer does with Ximler. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One pytest worker more than two processors: many tests wait for processes that they started.
WORKERS ?= 3

.PHONY: help run test test-fast soak check format bench docs lock wheel clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run ## Install the requirements and start Ximler on http://127.0.0.1:8000
	$(BIN)/ximler up

test: $(VENV)/.dev ## Run the tests, on a MongoDB of their own (or on MONGODB_TEST_URI)
	$(BIN)/pytest -n $(WORKERS) -m "not soak" $(ARGS)

test-fast: $(VENV)/.dev ## Run all but the slow tests: two minutes
	$(BIN)/pytest -n $(WORKERS) -m "not soak and not slow" $(ARGS)

soak: $(VENV)/.dev ## Run the long tests
	$(BIN)/pytest -m soak $(ARGS)

check: $(VENV)/.dev ## Lint, types, import rules, and whether generated files are fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.generate --check

format: $(VENV)/.dev ## Format the code and apply automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench ## Measure, side by side with the peers
	$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/.dev ## Generate docs/schema.md, docs/schema.graphql and the README's table of settings
	$(BIN)/python -m tools.generate

lock: $(VENV)/.dev ## Pin the versions of all dependencies anew
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --generate-hashes --extra embedded pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --generate-hashes --extra embedded --extra geoip --group dev pyproject.toml -c requirements.lock -o requirements-dev.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --generate-hashes --group bench pyproject.toml -c requirements-dev.lock -o requirements-bench.lock

wheel: $(VENV)/.dev ## Build dist/*.whl
	$(BIN)/python -m build -q

clean: ## Remove installed and built files
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -U pip

$(VENV)/.run: $(VENV)/bin/python requirements.lock pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.lock
	@touch $@

$(VENV)/.bench: $(VENV)/.dev requirements-bench.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-bench.lock
	@touch $@
