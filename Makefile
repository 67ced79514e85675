# The commands of the project; `make help` lists them.
PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup packages bpf demo test test-unit test-kernel test-lab lint coverage bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: packages $(VENV)/.stamp bpf ## install Debian packages, build the BPF objects, make the virtual environment

packages:
	@packaging/setup-debian

# The system's own Python, because python3-lxc is a compiled module for it.
$(VENV)/.stamp: setup.cfg pyproject.toml | packages
	@test -x $(BIN)/python || $(PYTHON) -m venv --system-site-packages $(VENV)
	@echo "filling $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[plc,test,dev]'
	@touch $@

bpf: | packages
	@$(MAKE) --no-print-directory -s -C kmod/bpf

demo: setup ## bring up Abilene on this machine, show that it works, take it down
	@$(BIN)/trellis lab demo

test: setup lint test-unit test-kernel test-lab ## all tests

test-unit: setup ## tests without root
	@$(PYTEST) tests/unit tests/property tests/plc tests/repo

test-kernel: setup ## tests with the real kernel and real LXC, in namespaces of their own
	@$(PYTEST) tests/kernel tests/container tests/node

test-lab: setup ## whole labs: PLC, node managers, slivers
	@$(PYTEST) tests/lab

coverage: setup ## line coverage of the pure rooms, which must be at least 95 %
	@$(BIN)/python -m coverage run -m pytest -q tests/unit tests/property
	@$(BIN)/python -m coverage report

lint: setup ## ruff, mypy, layers
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache

bench: setup ## measure forwarding on this machine
	@$(BIN)/trellis bench forwarding

clean: ## remove what was built
	@rm -rf $(VENV) build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis lab-report
	@$(MAKE) --no-print-directory -s -C kmod/bpf clean
