# The commands of this repository. Each does all the set-up it needs, once: the first run makes .venv, later ones
# start at once, and a change of the C++ sources or of the dependencies brings it up to date.
#
#   make train            train the default model on this machine, then write some text with it
#   make train ARGS=...   the same with overrides, such as ARGS="train.steps=1000 optim.lr=1e-3"
#   make test             lint, types, tests; ARGS=... are for pytest, such as ARGS="tests/monitor -x"
#   make parts            Debian's packages that some tests need (a private SLURM, network namespaces, a browser); without
#                         them those are skipped. Installs what is missing where this is root's, else names it
#   make lint             lint and types only
#   make bench            measure against plain torch (some minutes; ARGS=--quick only shows that it works)
#   make soak             what only long trials show: faults of every kind (python -m tests.soak.matrix --help), files and
#                         disks that fail, the prevention of spikes, and runs of every kind of objective
#   make clean            remove .venv and what the build left (not runs/)

PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: help setup train test parts lint bench soak clean

help:
	@sed -n 's/^#  *make/  make/p' Makefile

setup: $(VENV)/.ready

train: setup
	$(BIN)/python launch/pretrain.py experiment=default $(ARGS)
	$(BIN)/python launch/generate.py run=runs/default prompt="def "

# One thread per process: tests start up to eight ranks at a time, and threads that outnumber cores spin. Two workers:
# half of the time of a test that starts processes is spent waiting.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Never fails: what cannot be had only leaves tests out.
parts:
	@missing=""; \
	for part in slurmd:slurm-wlm munged:munge ip:iproute2 chromium:chromium; do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${part%%:*}" >/dev/null || missing="$$missing $${part#*:}"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get update && apt-get install -y --no-install-recommends $$missing; } >/dev/null 2>&1 && exit 0; \
	fi; \
	echo "tests that need them are skipped: apt-get install$$missing"

bench: setup
	$(BIN)/python -m tests.bench $(ARGS)

soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.matrix
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.files
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.spikes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.alarms
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.prevention
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.objectives

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info engine/_C.*

# torch first: the extension is compiled against it.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 "setuptools>=77" wheel
	@touch $@

$(VENV)/.ready: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[dev]'
	@touch $@
