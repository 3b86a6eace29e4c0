# Short names for what mefar does. `make` or `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MEFAR := $(BIN)/mefar
# Rewritten only when what it depends on has changed: every target below is quick to start.
READY := $(VENV)/.mefar-ready
# A process per core; each takes about 1.5 GB, so at most four. In a debugger: make test ARGS="-n 0 -k name".
PYTEST := -m pytest -n auto --maxprocesses 4 --dist worksteal
DEMO_CORPORA := runs/demo/corpora

.PHONY: help setup demo test lowest lint pretrain loso sweep bench clean

need-%:
	$(if $($*),,$(error make $(MAKECMDGOALS): $* is missing; `make help` shows how to give it))

help:  ## list these targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with everything in it [PYTHON=python3 TORCH="torch==2.9.1 --index-url URL" for another torch build]

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make setup: error: $(PYTHON) is older than Python 3.11; name another: make setup PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifdef TORCH
	$(BIN)/python -m pip install $(TORCH)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
else
	cp constraints.txt $(VENV)/constraints.txt
endif
	$(BIN)/python -m pip install -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## from nothing to a composite table on rendered faces, in runs/demo [ARGS=]
	$(MEFAR) demo $(ARGS)

test: $(READY)  ## run the tests [ARGS="-k name"; in one process ARGS="-n 0"]
	$(BIN)/python $(PYTEST) $(ARGS)

lowest:  ## run the tests with the lowest versions that pyproject.toml allows, in .venv-lowest; before a release [ARGS=]
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q uv
	.venv-lowest/bin/uv pip install --python .venv-lowest --resolution lowest-direct -e '.[dev]'
	.venv-lowest/bin/python $(PYTEST) $(ARGS)

lint: $(READY)  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pretrain: $(READY)  ## train the tokenizer on VOXCELEB=DIR; without it on the demo's rendered faces [ARGS=]
ifdef VOXCELEB
	$(MEFAR) fit --config experiments/configs/pretrain.yaml --data.init_args.data "$(VOXCELEB)" $(ARGS)
else
	@echo "VOXCELEB is not set: training the demo's tokenizer on rendered faces, $(DEMO_CORPORA)/voxceleb"
	$(MEFAR) make-demo $(DEMO_CORPORA)
	$(MEFAR) fit --config experiments/configs/demo.yaml --data.init_args.data $(DEMO_CORPORA)/voxceleb --ckpt_path last $(ARGS)
endif

loso: need-DATASET need-DATA need-TOKENIZER $(READY)  ## leave-one-subject-out: DATASET=composite|casme2|samm|smic|FILE.py DATA=DIR TOKENIZER=CKPT [CLASSES=3 ARGS=]
	$(MEFAR) loso --dataset $(DATASET) --data "$(DATA)" --tokenizer "$(TOKENIZER)" $(if $(CLASSES),--classes $(CLASSES)) $(ARGS)

sweep: need-SWEEP $(READY)  ## a W&B sweep: SWEEP=pretrain|loso [COUNT=20]; without an account LOCAL=10 runs it here
ifdef LOCAL
	$(MEFAR) sweep $(SWEEP) --local $(LOCAL) $(ARGS)
else
	@BIN=$(BIN) experiments/sweeps/run $(SWEEP) $(COUNT)
endif

bench: $(READY)  ## every speed claim, both sides and the ratio
	@for script in experiments/benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:  ## remove caches and build leftovers; keeps .venv, runs and data
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find mefar datamodules experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +
