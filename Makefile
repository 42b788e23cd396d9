# The whole developer interface.  Each target makes what it needs first, so any may come first.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
PY := .venv/bin/python

.PHONY: help
help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup:  ## Install what is missing: Debian packages, .venv from requirements.lock
	@scripts/setup

.PHONY: demo
demo: setup  ## See it work: a daemon, a watcher and the VM of libvirt's test driver
	@$(PY) demo/first_light.py

.PHONY: run
run: setup  ## Run the daemon on libvirt's test driver; socket and journal in .run/ (ARGS=)
	@mkdir -p .run
	@echo "in another terminal: .venv/bin/vmagentctl --target unix:$(CURDIR)/.run/vmagentd.sock list"
	@exec $(PY) -m vmagentd --libvirt-uri test:///default --socket $(CURDIR)/.run/vmagentd.sock \
		--state-dir .run/state $(ARGS)

.PHONY: test
test:  ## Run all tests and linters; ARGS= goes to pytest
	@scripts/setup test
	@# They wait more than they compute; those of one file share fixtures and stay together.
	@$(PY) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile $(ARGS)

.PHONY: test-host
test-host:  ## Test the package on hosts with a systemd of their own; needs root (ARGS=)
	@scripts/setup host
	@$(PY) -m pytest tests/host $(ARGS)

.PHONY: deb
deb:  ## Build the Debian package into dist/
	@scripts/setup deb
	@packaging/debian/build $(VERSION)

.PHONY: chaos
chaos: setup  ## Kill all there is for a while and check what clients saw (MINUTES=5 SEED=)
	@$(PY) -m tests.system.chaos --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

.PHONY: fuzz
fuzz:  ## Send anything at all to a daemon for a while (MINUTES=5 SEED=)
	@scripts/setup test
	@$(PY) -m tests.fuzz --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

.PHONY: bench
bench:  ## Measure what has a number to reach (NAME=callback, footprint, gate, hung, operations, reconnect or tls)
	@scripts/setup test
	@for name in $(or $(NAME),callback footprint gate hung operations reconnect tls); do $(PY) -m tests.bench.$$name; done

.PHONY: pki
pki: setup  ## Make a CA and certificates in .run/pki to try remote access; says how
	@.venv/bin/vmagentctl pki .run/pki --server localhost --server 127.0.0.1 \
		--client spiffe://example.org/ops

.PHONY: check
check: setup  ## Run the linters only
	@$(PY) -m pytest tests/unit/test_style.py $(ARGS)

.PHONY: fix
fix: setup  ## Let the linters repair and format what they can
	@$(PY) -m ruff check --fix --exit-zero --quiet .
	@$(PY) -m ruff format --quiet .
	@.venv/bin/buf format --write

.PHONY: protos
protos: setup  ## Regenerate the stubs in clients/python/vmagent/ from protos/
	@scripts/protos

.PHONY: lock
lock:  ## Renew requirements.lock
	@scripts/lock $(ARGS)

.PHONY: clean
clean:  ## Remove all that is made here
	@rm -rf .venv .run dist clients/python/dist .*_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
