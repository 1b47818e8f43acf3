# make demo   installs everything and runs all stages: data, VQ-VAE, prior, outcome model, dream, evaluation
# make test   installs everything, runs the linter and the type checker, builds the site and runs the tests
# make docs   builds the site into site/; open site/index.html
# make ucf101 SOURCE=folder
#             reads UCF-101 as published, trains the paper's unconditional models, and samples from them; ucf101_128
#             and tgif likewise. PRESET=video_small is for two cores, PRIOR=--classes for class-conditional models
# make campaign
#             tests damaged files, killed processes and hostile input for 20 minutes, and writes docs/campaign.md
# make dream ENV=id
#             makes a world model of any Gymnasium environment in half an hour, or in MINUTES=n
# make gpu    measures everything that needs a GPU, in at most 8 minutes; runs/gpu/table.md has the results
# An interrupted command resumes when it is run again. PYTHON=python3.12 make ... takes another interpreter, and
# installs into a folder of its own, .venv-3.12. Python compiles what it imports, so pip does not compile everything.

PYTHON ?= python3.11
VENV := .venv$(patsubst python%,-%,$(filter-out python3.11,$(notdir $(PYTHON))))
BIN := $(VENV)/bin
SHELL := /bin/bash

.PHONY: demo ucf101 ucf101_128 tgif test lint docs campaign dream gpu clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e ".[all,dev,docs]"
	touch $@

demo: $(VENV)/ready
	$(BIN)/python collect/vizdoom.py --preset demo
	$(BIN)/python train/vqvae.py --preset demo
	$(BIN)/python train/tokens.py --preset demo
	$(BIN)/python train/prior.py --preset demo --actions
	$(BIN)/python train/outcome.py --preset demo
	$(BIN)/python rollout/dream.py --preset demo
	$(BIN)/python rollout/evaluate.py --preset demo

ucf101 ucf101_128 tgif: PRESET = $@
ucf101 ucf101_128 tgif: RUN = runs/$@$(patsubst %,_%,$(filter-out $@,$(basename $(notdir $(PRESET)))))
ucf101 ucf101_128 tgif: NAME = prior$(subst --,_,$(firstword $(PRIOR)))
ucf101 ucf101_128 tgif: $(VENV)/ready
	$(if $(SOURCE),,$(error SOURCE is missing; give the folder of the data as published: make $@ SOURCE=folder))
	$(BIN)/python collect/$(@:_128=).py --preset $(PRESET) --source "$(SOURCE)" --out $(RUN)/data.zarr
	$(BIN)/python train/vqvae.py --preset $(PRESET) --run $(RUN)
	$(BIN)/python train/tokens.py --preset $(PRESET) --run $(RUN)
	$(BIN)/python train/prior.py --preset $(PRESET) --run $(RUN) --out $(NAME) $(PRIOR)
	$(BIN)/python rollout/sample.py --preset $(PRESET) --run $(RUN) --prior $(NAME)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "the site: site/index.html"

test: $(VENV)/ready
	$(MAKE) -j 2 lint docs
	$(BIN)/pytest -n 2 --dist worksteal

campaign: $(VENV)/ready
	$(BIN)/python -m tests.campaign --out docs/campaign.md

dream: $(VENV)/ready
	$(BIN)/python train/world.py --env-id $(or $(ENV),$(error give an environment: make dream ENV=CartPole-v1)) \
	  --run runs/$(lastword $(subst :, ,$(notdir $(ENV)))) --minutes $(or $(MINUTES),30)

gpu: $(VENV)/ready
	$(BIN)/python train/gpu.py

clean:
	rm -rf .venv .venv-* runs site
