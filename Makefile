# The same few words everywhere. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.setup-done
TESTS ?= tests
WORKERS ?= 2
PEERS := azurite azure-sdk node-sdk moto schemathesis vision-clients postgres iproute2

.DEFAULT_GOAL := help
.PHONY: help setup demo up test soak soak-full check format bench bench-hub bench-delta bench-link bench-serve bench-swap docs models models-check clean azurite azure-sdk node-sdk moto schemathesis vision-clients atheris postgres delta-peers xdelta3 iproute2

help: ## list every target, a line each
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  \1|\2/' | column -t -s '|'

$(STAMP): pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 to 3.13 is needed, found " + sys.version.split()[0]) if not (3,11) <= sys.version_info[:2] < (3,14) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements/constraints.txt --editable '.[dev]'
	@touch $(STAMP)

setup: $(STAMP) ## make .venv with everything a developer needs

node_modules/.package-lock.json: package.json package-lock.json
	@if command -v npm >/dev/null; then npm ci --no-audit --no-fund --loglevel=error; \
	else echo 'npm is not here: install Node.js; the tests that need the Azurite blob server will say that they are skipped'; fi

azurite: node_modules/.package-lock.json ## install the Azurite blob server for the tests (needs Node.js)

azure-sdk: setup ## make the environments with Microsoft's SDKs for the tests, the next one in its own
	@$(BIN)/python scripts/make_sdk_env.py azure
	@$(BIN)/python scripts/make_sdk_env.py azure-rc

NODE_SDK := tests/hub/node
$(NODE_SDK)/node_modules/.package-lock.json: $(NODE_SDK)/package.json $(NODE_SDK)/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix $(NODE_SDK) --no-audit --no-fund --loglevel=error; \
	else echo "npm is not here: install Node.js; the tests that need Microsoft's SDKs for it will say that they are skipped"; fi

node-sdk: $(NODE_SDK)/node_modules/.package-lock.json ## install Microsoft's SDKs for Node.js for the tests

moto: setup ## make the environment with moto, a double of Amazon S3, for the tests
	@$(BIN)/python scripts/make_sdk_env.py moto

schemathesis: setup ## make the environment with schemathesis, which tests the hub's REST
	@$(BIN)/python scripts/make_sdk_env.py schemathesis

vision-clients: setup ## make the environment with clients of inference servers, for the tests
	@$(BIN)/python scripts/make_sdk_env.py vision-clients

atheris: setup ## make the environment with atheris, a coverage-guided fuzzer, for the soak tests
	@$(BIN)/python scripts/make_sdk_env.py atheris || echo 'atheris is not here: the tests that need it will say that they are skipped'

delta-peers: setup ## make the environment with a differ that patches are measured against
	@$(BIN)/python scripts/make_sdk_env.py delta-peers

xdelta3: ## install the differ xdelta3 for bench-delta, when it is missing and we may (root and apt)
	@if command -v xdelta3 >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends xdelta3 >/dev/null; \
	else echo 'xdelta3 is not here: install its package; bench-delta will say that this peer is missing'; fi

iproute2: ## install the command ip for thin links in tests and bench-link, when it is missing and we may
	@if command -v ip >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends iproute2 >/dev/null; \
	else echo 'ip is not here: install iproute2; the tests that need it will say that they are skipped'; fi

postgres: ## install PostgreSQL for the tests, when it is missing and we may (root and apt)
	@if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null; \
	else echo 'PostgreSQL is not here: install its server package; the tests that need it will say that they are skipped'; fi

demo: setup ## the whole story on this machine in under three minutes, figures at the end
	@$(BIN)/edgeferry demo --out out/demo --json out/demo/figures.json

up: setup ## a hub and one device with the demo model, in the foreground
	@$(BIN)/edgeferry demo --up --out out/up

test: setup $(PEERS) ## every test but the long ones; under 15 minutes on two cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'not soak and not soak_full' $(TESTS)

soak: setup $(PEERS) atheris ## seeded faults, kills and fuzzing, short form
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m soak $(TESTS)

soak-full: setup $(PEERS) atheris ## the same with the full counts (long)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'soak or soak_full' $(TESTS)

check: setup ## format, lint, types, floors of the house, spelling, docs in step
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src tests docs models scripts README.md CHANGELOG.md CONTRIBUTING.md Makefile
	$(BIN)/python scripts/make_cli_docs.py --check

format: setup ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## measure full downloads and metadata; writes its section of docs/benchmarks.md (ARGS="--json FILE")
	$(BIN)/python scripts/bench.py --write docs/benchmarks.md $(ARGS)

bench-hub: setup ## put fleets of 5,000 and 10,000 on the hub; writes its section of docs/benchmarks.md (ARGS="--json FILE")
	$(BIN)/python scripts/bench_hub.py --write docs/benchmarks.md $(ARGS)

bench-delta: setup delta-peers xdelta3 .venv-models/.setup-done ## measure patches beside every peer; writes its section of docs/benchmarks.md (ARGS="--json FILE --fresh")
	.venv-models/bin/python -m scripts.delta_corpus
	$(BIN)/python scripts/bench_delta.py --write docs/benchmarks.md $(ARGS)

bench-link: setup iproute2 ## measure updates over thin links, as root; writes its section of docs/benchmarks.md (ARGS="--json FILE")
	$(BIN)/python scripts/bench_link.py --write docs/benchmarks.md $(ARGS)

bench-serve: setup ## measure serving beside every peer; writes its section of docs/benchmarks.md (ARGS="--json FILE")
	$(BIN)/python scripts/bench_serve.py --write docs/benchmarks.md $(ARGS)

bench-swap: setup ## change models under load, beside every peer that can; writes its section of docs/benchmarks.md (ARGS="--json FILE")
	$(BIN)/python scripts/bench_swap.py --write docs/benchmarks.md $(ARGS)

docs: setup ## write docs/cli.md and the state diagram from the code
	$(BIN)/python scripts/make_cli_docs.py

.venv-models/.setup-done: models/requirements.txt
	$(PYTHON) -m venv .venv-models
	.venv-models/bin/pip install --quiet --disable-pip-version-check -r models/requirements.txt
	@touch $@

models: .venv-models/.setup-done ## train the demo models anew (needs torch; about an hour)
	.venv-models/bin/python -m models.build

models-check: setup ## measure the committed demo models, without torch
	$(BIN)/python -m models.build --check

clean: ## remove environments and what was made
	rm -rf .venv .venv-* .cache node_modules tests/hub/node/node_modules out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
