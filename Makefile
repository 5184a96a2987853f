# Millrace. `make demo` shows it working, `make test` tests it; both set up what they need on a Debian 12 with Rust, as
# root or with sudo. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
PYTHON = $(or $(MILLRACE_TEST_VENV),$(CURDIR)/.venv)/bin/python
DEBUG = MILLRACE_BIN=$(TARGET)/debug/millrace
RELEASE = MILLRACE_BIN=$(TARGET)/release/millrace
TOOLS = $(or $(MILLRACE_TEST_TOOLS),/var/tmp/millrace-test-tools-$(shell id -u))
# Three servers and daemons side by side keep two cores busy.
WORKERS ?= 3
PYTEST_ALL = $(PYTHON) -m pytest -q -rs -p no:cacheprovider --timeout 300 -n $(WORKERS) --dist worksteal
PYTEST = $(PYTEST_ALL) tests/e2e

.PHONY: help
help: ## what there is
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

.PHONY: setup
setup: ## PostgreSQL 15 from Debian, Python's packages into .venv; leaves alone what is there
	@tests/setup.sh 15 >/dev/null

.PHONY: mysql-server
mysql-server: ## MySQL 9 from Debian's sid for the tests, unpacked into MILLRACE_TEST_TOOLS; nothing is installed
	@tests/mysql_server.sh

.PHONY: demo
demo: setup ## a shop, live changes, a kill -9, and every row compared at the end
	cargo build --locked
	@$(DEBUG) $(PYTHON) demo/demo.py

.PHONY: test
test: lint unit e2e faults-quick ## format, lints, unit tests, end to end against PostgreSQL 15, a minute of faults

.PHONY: lint
lint: setup ## format, clippy, licences
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features failpoints -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --all-features check licenses bans sources; \
	else echo "cargo-deny is not installed: licences and sources were not checked (cargo install cargo-deny)"; fi

.PHONY: unit
unit: setup mysql-server-if-possible ## Rust's tests with the connectors' shared suite, each fuzz target for ten seconds
	MILLRACE_FUZZ_SECONDS=10 cargo test --locked --workspace --features failpoints
	cargo test --locked --workspace --features failpoints --lib a_case_is_the_same -- --ignored --test-threads 1

.PHONY: conformance
conformance: setup mysql-server-if-possible ## what every source must keep, on PostgreSQL, MariaDB and MySQL
	cargo test --locked --workspace --features failpoints --test conformance -- --nocapture

.PHONY: fuzz
fuzz: ## ten minutes for each fuzz target (MILLRACE_FUZZ_SECONDS)
	MILLRACE_FUZZ_SECONDS=$(or $(MILLRACE_FUZZ_SECONDS),600) cargo test --locked -p millrace-postgres --test fuzz
	MILLRACE_FUZZ_SECONDS=$(or $(MILLRACE_FUZZ_SECONDS),600) cargo test --locked -p millrace-mysql --test fuzz
	MILLRACE_FUZZ_SECONDS=$(or $(MILLRACE_FUZZ_SECONDS),600) cargo test --locked -p millrace-postgres --lib log::fuzz

.PHONY: simulate
simulate: ## the log, delivery and a whole task over parts that fail, two minutes each (MILLRACE_SIMULATION_SECONDS, _SEED)
	MILLRACE_SIMULATION_SECONDS=$(or $(MILLRACE_SIMULATION_SECONDS),120) \
		cargo test --locked --lib simulation:: -- --nocapture --test-threads 1

.PHONY: binary
binary: setup
	cargo build --locked --features failpoints

.PHONY: mysql-server-if-possible
mysql-server-if-possible:
	@tests/mysql_server.sh || true

.PHONY: e2e
e2e: binary mysql-server-if-possible ## the real binary against real servers
	$(DEBUG) $(PYTEST)

.PHONY: faults
faults: binary ## everything broken on purpose, the table of docs/reliability.md written (FAULTS="--only 10,11")
	$(DEBUG) WORKERS=$(WORKERS) $(PYTHON) tests/faults/faults.py $(FAULTS)

.PHONY: faults-quick
faults-quick: binary
	$(DEBUG) $(PYTEST_ALL) -m quick tests/faults

.PHONY: traps
traps: binary ## every trap of docs/traps.md sprung, and the page written
	$(DEBUG) WORKERS=$(WORKERS) $(PYTHON) tests/e2e/traps.py

.PHONY: traps-new
traps-new: binary
	$(DEBUG) WORKERS=$(WORKERS) $(PYTHON) tests/e2e/traps.py --new

.PHONY: scorecard
scorecard: binary ## what DMS does not do with PostgreSQL or MySQL, and the tests that show that we do
	@$(DEBUG) WORKERS=$(WORKERS) $(PYTHON) tests/e2e/traps.py --scorecard

.PHONY: crash
crash: binary release ## SIGKILL at every failpoint and 50 times at random (MILLRACE_KILLS)
	$(DEBUG) MILLRACE_SHIPPED_BIN=$(TARGET)/release/millrace $(PYTHON) tests/e2e/crash.py

.PHONY: outage
outage: binary ## the target unreachable for a minute
	$(DEBUG) $(PYTHON) tests/e2e/outage.py

.PHONY: kills
kills: setup mysql-server release ## 200 random kills (MILLRACE_KILLS) under load: rows compared, recovery times
	$(RELEASE) $(PYTHON) tests/faults/kills.py $(if $(RECORD),--json docs/kills.json)
	$(RELEASE) $(PYTHON) tests/faults/kills_mysql.py mariadb $(if $(RECORD),--json docs/kills-mariadb.json)
	$(RELEASE) $(PYTHON) tests/faults/kills_mysql.py mysql $(if $(RECORD),--json docs/kills-mysql.json)

.PHONY: soak
soak: setup release ## MINUTES of transfers under random faults, everything watched (SOURCE=mariadb); RECORD=1 writes docs/soak.md
	MINUTES=$(or $(MINUTES),120) $(RELEASE) $(PYTHON) tests/faults/soak.py \
		$(if $(SOURCE),--source $(SOURCE)) $(if $(RECORD),--record)

.PHONY: idle
idle: setup release ## what an idle daemon with one task costs, and how soon it streams
	$(RELEASE) $(PYTHON) tests/e2e/idle.py $(if $(RECORD),--json docs/idle.json)

.PHONY: check-errors
check-errors: binary ## the usual first mistakes, each answered with its remedy
	$(DEBUG) $(PYTHON) tests/e2e/check_errors.py

.PHONY: release
release:
	cargo build --locked --release

.PHONY: memory
memory: setup release ## peaks at 1 M and 6 M rows, 1 and 1,000 tables
	$(RELEASE) $(PYTHON) tests/e2e/memory.py

.PHONY: large-transaction
large-transaction: setup release ## one transaction of 10 M rows in 512 MiB (MILLRACE_ROWS)
	$(RELEASE) $(PYTHON) tests/e2e/large_transaction.py

.PHONY: bench
bench: setup release ## full load, drain, stream and freshness beside their yardsticks (BENCH="--only drain --pairs 3")
	cargo build --locked --release -p millrace -p millrace-mysql --example put_records --example select
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	$(RELEASE) $(PYTHON) bench/bench.py $(BENCH)

.PHONY: setup-all
setup-all:
	@tests/setup.sh 15 17 18 >/dev/null

.PHONY: test-all
test-all: setup-all test ## everything: PostgreSQL 15, 17, 18, all faults and kills, outage, mistakes, memory, longer fuzzing
	MILLRACE_TEST_PG=17 $(DEBUG) $(PYTEST)
	MILLRACE_TEST_PG=18 $(DEBUG) $(PYTEST)
	for version in 17 18; do \
		MILLRACE_PG_BIN=$(TOOLS)/postgresql-$$version/bin cargo test --locked -p millrace-postgres --features failpoints; \
	done
	PROPTEST_CASES=2000 cargo test --locked --workspace --features failpoints
	$(MAKE) simulate faults fuzz crash outage check-errors memory large-transaction

.PHONY: audit
audit: ## licences, sources, and advisories where they can be fetched
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny --all-features check licenses bans sources
	@cargo deny --all-features check advisories || { echo "audit: the advisories could not be fetched, or found something (above)"; exit 1; }
