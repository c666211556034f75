# `make repro` and `make test` do everything on a machine with Python 3.11–3.13, git and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Stages run as `python -m …`: the environment's interpreter must be the first on the path.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help install repro test test-all lint format scan audit docs experiments lock merge release schema sample s3 clean

help:  ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

install: $(VENV)/installed  ## create .venv with what the pipeline needs

repro: $(VENV)/installed  ## install what is missing and run the pipeline
	dvc repro

test: $(VENV)/installed-dev lint  ## install what is missing and run all checks but the slow ones
	pytest -m "not slow"

test-all: $(VENV)/installed-dev lint  ## all checks, as each night
	pytest

lint: $(VENV)/installed-dev  ## check style and types
	ruff check
	ruff format --check
	pyright

format: $(VENV)/installed-dev  ## fix style
	ruff check --fix
	ruff format

scan: $(VENV)/installed-dev  ## search all files for keys and passwords
	pre-commit run --all-files detect-secrets

# In an environment of its own: what searches the pinned packages should not be one of them. Strict: a package that could
# not be looked up is an error, too.
audit: $(VENV)/installed-dev  ## look the pinned packages up among known vulnerabilities; needs the network
	uv tool run --quiet pip-audit==2.10.1 --strict --disable-pip --require-hashes -r requirements.txt -r requirements-dev.txt

docs: $(VENV)/installed-dev  ## build the documentation in site/; any warning is an error
	mkdocs build --strict --quiet
	@echo "python -m http.server --bind 127.0.0.1 --directory site  # shows it, search included, without a network"

schema: $(VENV)/installed  ## write docs/details.schema.json from the types in stages/evaluation/details.py
	python -c 'from stages.evaluation.details import write_schema; write_schema()'

sample: $(VENV)/installed  ## draw data/sample again
	python data/generate_sample.py

s3: $(VENV)/installed-dev  ## run an S3 server on this machine for DVC's remote, until Ctrl-C
	python -m tests.s3_server

lock: $(VENV)/installed-dev  ## compile requirements*.in into requirements*.txt, for every Python and platform
	uv pip compile $(COMPILE) requirements.in -o requirements.txt
	uv pip compile $(COMPILE) requirements-dev.in -o requirements-dev.txt

COMPILE := --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate --generate-hashes

# What the stages write, in either branch and in both, is what .gitattributes keeps Git from merging line by line.
ADD_OUTPUTS := git ls-files -z --cached --others --exclude-standard ':(attr:-merge)' | xargs -0 git add --

merge: $(VENV)/installed  ## merge BRANCH=… into this branch, with the outputs of a run of both; again after conflicts
	@git rev-parse -q --verify MERGE_HEAD || git merge --no-ff --no-commit "$${BRANCH:?which? make merge BRANCH=name}"; \
		git rev-parse -q --verify MERGE_HEAD
	$(ADD_OUTPUTS)
	@left=$$(git diff --name-only | sort -u); test -z "$$left" || { echo "error: in conflict, or changed and not added:" \
		$$left "(edit, git add, and run make merge again; or git merge --abort)" >&2; exit 1; }
	git ls-files -z '*.dvc' | xargs -0 -r dvc checkout
	dvc repro
	$(ADD_OUTPUTS)
	git commit --no-edit

release: $(VENV)/installed-dev  ## collect the model in dist/, with its card, the software that made it and checksums
	dvc status --quiet || { echo "error: the model is not of this code and data: dvc repro, and commit" >&2; exit 1; }
	rm -rf dist && mkdir dist
	cp models/model.safetensors models/model.json models/calibration.json metrics/environment.json dist/
	cp models/README.md dist/MODEL_CARD.md
	uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements.txt --output-file dist/sbom.json
	cd dist && sha256sum * > SHA256SUMS

# Without hashes of files and all but the main metrics: a table that a terminal shows.
experiments:  ## show the experiments of this commit and what differs between them, in one screen
	dvc exp show --only-changed --drop \
		'.*/|Created|train\.|val\.acc|val\.loss|step|epoch|learning_rate|accuracy|au?prc|brier|f1|macro_|nll|precision|sensitivity$$|specificity$$'

clean:  ## remove the virtual environment and what runs have left
	rm -rf $(VENV) checkpoints dist dvc_plots site report.md report_pictures

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.11 to 3.13 is needed: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Nothing is installed whose hash is not in requirements*.txt, nor built by anything else: setuptools comes first.
HASHED := --quiet --require-hashes --no-build-isolation
PIP := python -m pip install --disable-pip-version-check $(HASHED)

# uv unpacks on all cores, in a fifth of pip's time; but it does not know a mirror that only pip is configured for.
# Bytecode is compiled now, not by the first run.
$(VENV)/installed: requirements.txt | $(BIN)/python
	sed -nE '/^(setuptools|uv)==/,/[^\\]$$/p' requirements.txt requirements-dev.txt | $(PIP) -r /dev/stdin
	uv pip install --python $(BIN)/python --compile-bytecode $(HASHED) -r requirements.txt || \
		$(PIP) -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(PIP) -r requirements-dev.txt
	@touch $@
