# The two commands of the README, and what developers use. Everything happens in .venv; nothing is installed elsewhere,
# except by `make test`, which asks the system's package manager for the partners of the tests.

PYTHON ?= python3
VENV := .venv
# Most tests wait for ptys, brokers and disks: more of them at once than there are cores.
PYTEST_OPTIONS ?= -n 6 --dist worksteal
BIN := $(VENV)/bin
# `make test` runs the tests on a board too where its firmware lies here; `make clean` removes it.
BOARD_FOLDER ?= build/board
SOURCES := pyproject.toml constraints.txt

.PHONY: help demo test test-only lint format bench board powercut fuzz differential documents clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(VENV)/.demo ## The main job on this machine, everything embedded: under three minutes, no root needed
	@$(BIN)/shuiwang demo

test: system-packages $(VENV)/.test ## Install what the tests need and run all of them
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

test-only: ## Run the tests with what is installed
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

lint: $(VENV)/.lint ## Format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint ## Bring the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test ## Poll cycle, cost per reading, memory; each against a limit in the same run
	$(BIN)/python benchmarks/poll_cycle.py
	$(BIN)/python benchmarks/reading_cost.py
	$(BIN)/python benchmarks/memory.py

board: board-packages $(VENV)/.test ## The detector on a Cortex-M3 in qemu: build MicroPython for it in BOARD_FOLDER, run the tests
	tools/board_micropython.sh $(BOARD_FOLDER)
	SHUIWANG_BOARD=$(abspath $(BOARD_FOLDER))/firmware.elf $(BIN)/python -m pytest tests/agent/detection/test_board.py

powercut: $(VENV)/.test ## 20,000 simulated power cuts, 4,000 damaged stores: longer than `make test` may take
	SHUIWANG_POWER_CUTS=20000 SHUIWANG_DAMAGED_STORES=4000 $(BIN)/python -m pytest --timeout=3600 \
		tests/gateway/test_store_powercut.py tests/gateway/test_store_recovery.py

fuzz: $(VENV)/.test ## A million requests over a line that does everything wrong; prints the tally by cause and protocol
	PYTHONPATH=.:tests $(BIN)/python -m partners.faulty_village --exchanges 1000000

differential: $(VENV)/.test ## Ten million readings through the detector core, on CPython and on MicroPython
	$(BIN)/python tests/partners/differential.py --readings 10000000

documents: $(VENV)/.test ## Generate what is generated: JSON Schemas, AsyncAPI
	$(BIN)/python tools/generate_contract.py

clean: ## Remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Ends a recipe that has listed what is missing, with the system's package manager.
define install_missing
[ -z "$$missing" ] && exit 0; \
command -v apt-get >/dev/null || { echo "Please install:$$missing"; exit 1; }; \
root=; [ "$$(id -u)" = 0 ] || root=sudo; \
echo "Installing for the tests:$$missing"; \
$$root apt-get update -qq && $$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null
endef

.PHONY: system-packages
system-packages:
	@missing=; for name in mosquitto:mosquitto mosquitto_sub:mosquitto-clients mbpoll:mbpoll socat:socat strace:strace; do \
		PATH="$$PATH:/usr/sbin" command -v "$${name%%:*}" >/dev/null || missing="$$missing $${name##*:}"; done; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	$(install_missing)

.PHONY: board-packages
board-packages:
	@missing=; for name in arm-none-eabi-gcc:gcc-arm-none-eabi qemu-system-arm:qemu-system-arm dpkg-source:dpkg-dev gcc:gcc; do \
		command -v "$${name%%:*}" >/dev/null || missing="$$missing $${name##*:}"; done; \
	[ -e /usr/share/doc/libnewlib-arm-none-eabi ] || missing="$$missing libnewlib-arm-none-eabi"; \
	$(install_missing)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "shuiwang needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11 …"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Cannot make a virtual environment: install python3-venv, then try again."; exit 1; }

$(VENV)/.demo: $(VENV)/bin/python $(SOURCES)
	@echo "Installing into $(VENV) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/bin/python $(SOURCES)
	@echo "Installing into $(VENV) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.lint: $(VENV)/bin/python $(SOURCES)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@ $(VENV)/.test $(VENV)/.demo
