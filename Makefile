# make demo   sets up everything and runs the main job: data, VQ-VAE, prior, dream, figures (README has the minutes)
# make test   sets up everything and runs the linter, the type checker and the tests
# Both go on where they were interrupted. PYTHON=python3.12 make ... takes another interpreter.

PYTHON ?= python3.11
BIN := .venv/bin
SHELL := /bin/bash

.PHONY: demo test lint clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv/ready
	$(BIN)/python collect/vizdoom.py --preset demo
	$(BIN)/python train/vqvae.py --preset demo
	$(BIN)/python train/tokens.py --preset demo
	$(BIN)/python train/prior.py --preset demo --actions
	$(BIN)/python train/outcome.py --preset demo
	$(BIN)/python rollout/dream.py --preset demo
	$(BIN)/python rollout/evaluate.py --preset demo

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest

clean:
	rm -rf .venv runs
