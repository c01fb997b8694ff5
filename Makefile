# Every task of the project; `make` lists them and CI calls the same ones.
# Environments are built from hashed locks and rebuilt only when a lock changes (docs/decisions/0001-build-and-locks.md).

PYTHON ?= python3
PYTEST_ARGS ?=
# How many tests run at a time: six, because most of them wait for something; three on one core.
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 2 ? cores + 2 : 6)))
SOAK_ARGS ?=
MUTATE_ARGS ?=
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=
BENCH_ARGS ?=
# The interpreter of `make bench`: the distribution's, because it is built with profile-guided optimisation.
SPEED_PYTHON ?= /usr/bin/python3
# Another commit whose cost per request is measured too; it is printed, not written.
AGAINST ?=
# If it is set (images set it), a suite that starts a thousand processes compiles every module in each of them.
unexport PYTHONDONTWRITEBYTECODE

VENV     := .venv
BIN      := $(VENV)/bin
BACKENDS := .venv-backends
CLIENTS  := .venv-clients
FUZZ     := .venv-fuzz
PEERS    := .venv-bench
SPEED    := .venv-speed
# The database server of the tests, which Debian keeps out of PATH, and a pooler before it.
DATABASE := initdb:postgresql pgbouncer
# What tests need besides Python: a command, or a command and the Debian package that contains it.
TOOLS    := apache2 curl faketime git haproxy nginx node:nodejs openssl $(DATABASE)
# What the recipes are tested with besides (tests/clients).
# Debian 12 has a cargo that is too old, and a newer one for browsers.
PEOPLE   := cadaver cargo:$(if $(shell grep -s bookworm /etc/os-release),cargo-web,cargo) chromium docker-registry git-lfs \
            npm skopeo
# The interpreters to compile for: the environment's, or the one that will create it; `make bench` has another.
COMPILES  = $(firstword $(wildcard $(BIN)/python) $(PYTHON))
CHECKED  := proxy tests $(wildcard bench)
COMPILED := build/compiled
OTHER     = build/against/$(AGAINST)
SOURCES   = $(shell find proxy -name __pycache__ -prune -o \( -name '*.py' -o -type d \) -print)
PIP_LOCK := -m pip --disable-pip-version-check install -qq --require-hashes
# For environments of which the tests import a small part: a module is compiled when it is first imported.
PIP_PART := $(PIP_LOCK) --no-compile
COMPILE   = CUSTOM_COMPILE_COMMAND="make lock" $(abspath $(BIN))/pip-compile --quiet --no-header --generate-hashes \
            --allow-unsafe --strip-extras --annotation-style=line --newline=lf --no-emit-index-url \
            --no-emit-trusted-host --no-emit-find-links --no-emit-options

# Tests that also run against the compiled package (docs/decisions/0004-compiled-hot-path.md); empty: none.
# The threats that are left out starve and kill processes, or use the control plane: a minute in which compiled modules do little.
COMPILED_TESTS ?= tests/unit/gateway tests/fuzz tests/e2e/test_build.py tests/e2e/test_forward_auth.py \
                  $(filter-out %/test_s7_api.py %/test_s7_escalation.py %/test_s7_people.py %/test_s8_exhaustion.py \
                    %/test_s10_faults.py %/test_s10_store.py %/test_s14_data_directory.py,$(wildcard tests/threats/test_*.py)) \
                  $(wildcard tests/property/test_gateway_*.py) \
                  $(foreach module,decision routes,tests/unit/core/test_$(module).py tests/property/test_core_$(module).py) \
                  $(foreach module,request_reading target,tests/unit/core/request/test_$(module).py tests/property/test_core_$(module).py)

# Tests of single modules that start processes by the dozen, which `make test` alone runs.
STARTING := tests/contract/test_crash.py tests/contract/test_disk.py tests/unit/authority/test_process.py tests/unit/bench \
            $(foreach module,quickstart serve whoami,tests/unit/cli/commands/test_$(module).py) tests/unit/supervisor/test_secrets.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help bootstrap venv install demo test test-clients test-unit ingress soak fuzz mutate check format compiled bench lock \
        clean system

help:  ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: venv  ## From nothing to a first authorised request; Ctrl-C ends it
	@$(BIN)/patgate quickstart

# Creates the environments and the compiled package in parallel. The compiled package is tested first, so that the
# summary of the whole suite is the last line. The tests of a file run in one process, because they share what they
# start. The longest files begin first (tests/support/order.py).
test test-clients test-unit: WORKING := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
test: TOOLS += $(PEOPLE)
test: system  ## Set everything up and run the whole test suite
	@$(MAKE) --no-print-directory -j4 install $(BACKENDS)/.ready $(CLIENTS)/.ready $(if $(COMPILED_TESTS),compiled)
	@export PATH="$$PATH:/usr/local/sbin:/usr/sbin:/sbin"; status=0; \
	if [ -n "$(COMPILED_TESTS)" ]; then PYTHONSAFEPATH=1 PYTHONPATH=$(abspath $(COMPILED)) \
		$(BIN)/python -m pytest --compiled $(WORKING) -q -p no:cacheprovider $(COMPILED_TESTS) || status=1; fi; \
	$(BIN)/python -m pytest $(WORKING) $(PYTEST_ARGS) || status=1; exit $$status

# Part of `make test` too. The configuration and the commands of each recipe are read from its page.
test-clients: TOOLS += $(PEOPLE)
test-clients: system  ## The recipes of docs/recipes, with the clients and backends that people have
	@$(MAKE) --no-print-directory -j3 install $(BACKENDS)/.ready $(CLIENTS)/.ready
	@export PATH="$$PATH:/usr/local/sbin:/usr/sbin:/sbin"; $(BIN)/python -m pytest $(WORKING) $(PYTEST_ARGS) tests/clients

# What a contributor runs again and again: it starts no gateway and needs neither the compiled package nor a
# third-party backend. (A few tests compile a C file of their own.)
test-unit: TOOLS := openssl $(DATABASE)
test-unit: system install  ## The tests of single modules, which start no gateway
	@$(BIN)/python -m pytest $(WORKING) -q $(addprefix --ignore=,$(STARTING)) $(PYTEST_ARGS) tests/unit tests/property tests/contract

# The lists of claims in config/ingress, from proxy/core/request/claims.py, and the matrix of docs/ingress.md, from a run
# of the suite.
ingress: system install $(BACKENDS)/.ready  ## Write what is generated in config/ingress and docs/ingress.md
	@$(BIN)/python -m tests.support.ingress_claims
	@PATH="$$PATH:/usr/local/sbin:/usr/sbin:/sbin" PATGATE_INGRESS_MATRIX=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q tests/e2e/ingress \
		--deselect tests/e2e/ingress/test_matrix.py::test_the_page_has_the_matrix_of_the_suite

soak: TOOLS += wrk
soak: system install $(BACKENDS)/.ready compiled  ## A million targets (SOAK_ARGS="--seed N" repeats them), a million requests, 1,000 changes of each kind
	@PATH="$$PATH:/usr/local/sbin:/usr/sbin:/sbin" $(BIN)/python -m tests.differential $(SOAK_ARGS)
	@PATH="$$PATH:/usr/local/sbin:/usr/sbin:/sbin" $(BIN)/python -m bench soak --check
	@PATGATE_TEST_ROUNDS=1000 $(BIN)/python -m pytest -q -o faulthandler_timeout=3600 tests/e2e/test_freshness.py

# Not in CI: the fuzzer has wheels for x86-64 Linux only. Its findings become seeds, which `make test` runs.
# The compiled package is fuzzed second: it reports no coverage, and begins with the findings of the first run.
fuzz: TOOLS :=
fuzz: system $(FUZZ)/.ready compiled  ## Fuzz both builds of the parsers, FUZZ_SECONDS each; FUZZ_TARGETS="answer token" for some of them
	@status=0; $(FUZZ)/bin/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS) || status=1; \
	echo "the compiled package:"; PYTHONSAFEPATH=1 PYTHONPATH=$(abspath $(COMPILED)):$(CURDIR) \
		$(FUZZ)/bin/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS) || status=1; exit $$status

# Not in CI: a sample of a hundred takes about an hour. A surviving fault shows a rule without a test, which gets one, or
# changes nothing, and gets a line in tests/mutation/table.py.
mutate: system install  ## Put faults into the rules and see that tests fail; MUTATE_ARGS="--seed N --sample 100 proxy/core"
	@PATH="$$PATH:/usr/local/sbin:/usr/sbin:/sbin" $(BIN)/python -m tests.mutation $(MUTATE_ARGS)

check: install  ## Lint, format, types and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)
	$(BIN)/lint-imports

format: install  ## Apply the formatter and the safe fixes of the linter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compiled: TOOLS :=
compiled: system install $(COMPILED)/.ready  ## The package with its hot modules compiled, in build/compiled

bench: TOOLS += wrk
bench: COMPILES = $(SPEED_PYTHON)
bench: system $(SPEED)/.ready-dev $(PEERS)/.ready $(COMPILED)-speed/.ready $(if $(AGAINST),$(OTHER)/.ready)  ## Measure all that is promised into docs/benchmarks.md; BENCH_ARGS="cpu" one part
	@$(SPEED)/bin/python -m bench $(if $(AGAINST),--against $(OTHER),--write) $(BENCH_ARGS)

bootstrap: TOOLS += wrk $(PEOPLE)
bootstrap: COMPILES += $(SPEED_PYTHON)
bootstrap:  ## Install the system packages that every other task needs (with apt-get, as root)
	@missing="$$(echo $$($(missing)))"; \
	if [ -z "$$missing" ]; then echo "no system package is missing"; exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "make bootstrap needs root and apt-get; without them install with the system's package manager: $$missing" >&2; \
		exit 1; fi; \
	echo "installing system packages: $$missing"; $(bootstrap)

venv: $(VENV)/.ready  ## The environment that patgate runs in

install: $(VENV)/.ready-dev  ## The same with all that tests and checks need

lock: install  ## Raise every pinned version to the newest that pyproject.toml allows
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "locks are compiled under the oldest Python we support: make clean lock PYTHON=python3.11" >&2; exit 1; }
	$(COMPILE) --upgrade --build-deps-for editable -o requirements.lock pyproject.toml
	$(COMPILE) --upgrade --build-deps-for editable --extra dev --extra grpc --extra postgres -c requirements.lock -o requirements-dev.lock pyproject.toml
	$(COMPILE) --upgrade --build-deps-for editable --extra grpc --extra postgres -c requirements-dev.lock -o requirements-image.lock pyproject.toml
	cd tests/backends && $(COMPILE) --upgrade -o requirements.lock requirements.in
	cd tests/clients && $(COMPILE) --upgrade -o requirements.lock requirements.in
	cd tests/clients/npm && npm update --package-lock-only --no-audit --no-fund --omit-lockfile-registry-resolved
	cd tests/fuzz && $(COMPILE) --upgrade -o requirements.lock requirements.in
	cd bench && $(COMPILE) --upgrade -o requirements.lock requirements.in

clean:  ## Remove the environments and every cache
	rm -rf $(VENV) $(BACKENDS) $(CLIENTS) $(PEERS) $(SPEED) $(FUZZ)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find proxy tests $(wildcard bench) -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp of the larger environment also counts for the smaller, because its lock is constrained by the other one.
$(VENV)/.ready: requirements.lock pyproject.toml | $(BIN)/python
	@if [ -e $(VENV)/.ready-dev ]; then $(MAKE) --no-print-directory $(VENV)/.ready-dev; else \
		echo "installing patgate into $(VENV)" && \
		$(BIN)/python $(PIP_LOCK) -r requirements.lock && \
		$(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps --no-build-isolation -e . ; fi
	@touch $@

$(VENV)/.ready-dev $(SPEED)/.ready-dev: %/.ready-dev: requirements-dev.lock pyproject.toml | %/bin/python
	@echo "installing patgate and its development tools into $*"
	@$*/bin/python $(PIP_LOCK) -r requirements-dev.lock
	@$*/bin/python -m pip --disable-pip-version-check install -qq --no-deps --no-build-isolation -e .
	@touch $@

# Binaries are in a build directory and never next to the sources, so that a binary older than its source never runs by
# accident. The stamp is created before the build begins, so that files edited meanwhile are newer. The arguments of
# `compile` are the environment, the checkout and the directory in it.
define compile
	@echo "compiling the gateway's hot modules into $(2)$(3)"
	@rm -rf $(2)$(3).new && mkdir -p $(2)$(3).new && touch $(2)$(3).new/.ready
	@cd ./$(2) && CC="$${CC:-gcc}" PATGATE_COMPILE=1 $(abspath $(1))/bin/python setup.py -q build \
		--build-base $(subst compiled,objects,$(3)) --build-lib $(3).new
	@rm -rf $(2)$(3) && mv $(2)$(3).new $(2)$(3)
endef

$(COMPILED)/.ready: setup.py pyproject.toml $(VENV)/.ready-dev $(SOURCES) | system
	$(call compile,$(VENV),,$(COMPILED))

$(COMPILED)-speed/.ready: setup.py pyproject.toml $(SPEED)/.ready-dev $(SOURCES) | system
	$(call compile,$(SPEED),,$(COMPILED)-speed)

# The whole tree of another commit, which installs itself (bench/peers/patgate.py), with the package compiled for the same
# interpreter. Name a commit, because a branch moves.
$(OTHER)/.ready: $(SPEED)/.ready-dev | system
	@rm -rf $(OTHER) && mkdir -p $(OTHER)
	@git archive $(AGAINST) | tar -x -C $(OTHER)
	$(call compile,$(SPEED),$(OTHER)/,$(COMPILED)-speed)
	@touch $@

$(BACKENDS)/.ready: tests/backends/requirements.lock | $(BACKENDS)/bin/python
	@echo "installing the third-party backends of the tests into $(BACKENDS)"
	@$(BACKENDS)/bin/python $(PIP_PART) -r $<
	@touch $@

$(CLIENTS)/.ready: tests/clients/requirements.lock tests/clients/npm/package-lock.json | $(CLIENTS)/bin/python
	@echo "installing the clients and backends of the recipes into $(CLIENTS)"
	@$(CLIENTS)/bin/python $(PIP_PART) -r $<
	@mkdir -p $(CLIENTS)/npm && cp tests/clients/npm/package.json tests/clients/npm/package-lock.json $(CLIENTS)/npm
	@cd $(CLIENTS)/npm && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

$(PEERS)/.ready: bench/requirements.lock | $(PEERS)/bin/python
	@echo "installing the gateways that Debian has not into $(PEERS)"
	@$(PEERS)/bin/python $(PIP_LOCK) -r $<
	@touch $@

$(FUZZ)/.ready: requirements.lock tests/fuzz/requirements.lock | $(FUZZ)/bin/python
	@echo "installing patgate's dependencies and the fuzzer into $(FUZZ)"
	@$(FUZZ)/bin/python $(PIP_LOCK) -r requirements.lock
	@$(FUZZ)/bin/python $(PIP_LOCK) -r tests/fuzz/requirements.lock
	@touch $@

$(SPEED)/bin/python: PYTHON = $(SPEED_PYTHON)
$(SPEED)/bin/python: | system

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "patgate needs Python 3.11 or newer; name one with: make PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "this Python cannot make environments: install its venv package (Debian: make bootstrap, as root)" >&2; exit 1; }
	@$(PYTHON) -m venv $*

# Prints the Debian packages that this machine lacks: for TOOLS, for a C compiler with the C library's headers, and, for
# each interpreter of COMPILES, for creating environments and compiling.
define missing
PATH="$$PATH:/usr/local/sbin:/usr/sbin:/sbin$$(printf ':%s' /usr/lib/postgresql/*/bin)"; \
for tool in $(TOOLS); do command -v $${tool%:*} >/dev/null || echo $${tool#*:}; done; \
for python in $(COMPILES); do \
	include="$$($$python -S -c 'import ensurepip, sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)" || \
		{ echo python3-venv; include=python3; }; \
	echo '#include <Python.h>' | $${CC:-gcc} -E -I"$$include" - >/dev/null 2>&1 || { echo gcc; echo libc6-dev; \
		[ -e "$$include/Python.h" ] || echo "$$(basename "$$include")-dev"; }; done
endef

define bootstrap
apt-get -qq update && \
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null; \
missing="$$(echo $$($(missing)))"; \
if [ -n "$$missing" ]; then echo "still missing: $$missing; install by hand" >&2; exit 1; fi
endef

# The first step of every task that needs system packages. It names what is missing. As root with apt-get, as in CI and in
# a fresh container, it installs the packages; otherwise it stops.
system:
	@missing="$$(echo $$($(missing)))"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	echo "this task needs system packages that are missing: $$missing" >&2; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "\`make bootstrap\` installs them as root on Debian and Ubuntu; elsewhere use the system's package manager" >&2; \
		exit 1; fi; \
	echo "running as root with apt-get: installing them, as \`make bootstrap\` does" >&2; $(bootstrap)
