# The front door: `make` alone lists what there is. Nothing but calls lives here.
PROFILE ?= default
JOBS    ?= 0
# The first Python that the pinned packages run on.
PYTHON  ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
             $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN     := .venv/bin
PIP     := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help report test lint bench audit publish lab lock clean

help:    ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

report: .venv/.installed  ## build report/build/report.html and .pdf [PROFILE=smoke|quick|default|thorough] [JOBS=2] [ONLY="02 03"] [SET="DATASET=mnist"] [DATA=folder]
	@$(BIN)/python report/build.py --profile $(PROFILE) --jobs $(JOBS) \
	  $(ONLY:%=--only %) $(SET:%=--set %) $(if $(DATA),--data-dir "$(DATA)")

test: lint  ## lint, then all tests; among them the whole report in the smoke profile
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: .venv/.installed  ## style of code and notebooks; notebooks are stored without outputs
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

bench: .venv/.installed  ## time layers and training against Keras's, in turns; tables, and JSON in report/build
	@mkdir -p report/build
	@$(BIN)/python benchmarks/layers.py --json report/build/layers.json
	@$(BIN)/python benchmarks/training.py --json report/build/training.json

audit: .venv/.installed  ## train five published runs anew, and say whether they agree
	@$(BIN)/python -m study.audit report/published/results.json --jobs $(JOBS)

publish: .venv/.installed  ## copy the built report to report/published, and its findings to the README
	@$(BIN)/python report/publish.py

lab: .venv/.installed  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks/01_batch_normalization.ipynb

lock:    ## compile requirements.txt anew (needs uv)
	@uv pip compile pyproject.toml --extra test --python-version 3.11 --universal --generate-hashes --upgrade --quiet \
	  --default-index https://pypi.org/simple --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" --output-file requirements.txt

clean:   ## remove what was built; finished runs stay in their cache
	@rm -rf report/build .pytest_cache .ruff_cache .hypothesis

.venv/.installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Expected Python 3.11, 3.12 or 3.13, or its path: make PYTHON=..." >&2; exit 1; }
	@echo "Installing the pinned packages into .venv: some minutes, the first time"
	@if $(PYTHON) -c "import ensurepip" 2>/dev/null; then $(PYTHON) -m venv .venv; else $(DEBIAN_VENV); fi || \
	  { echo "No virtual environment could be made. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@# The lock is whole. Left to resolve it, pip 23 takes the newest release for an extra, and finds no hash for it.
	@$(PIP) install --require-hashes --no-deps --requirement requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# Debian keeps pip, and the certificates it needs, in packages of their own. They can be had without root.
DEBIAN_VENV = $(PYTHON) -m venv --without-pip .venv && cd .venv && \
  apt-get -qq download python3-pip-whl ca-certificates && for package in *.deb; do dpkg-deb -x $$package .; done && \
  PYTHONPATH=$$(echo usr/share/python-wheels/pip-*.whl) bin/python -m pip install --quiet --no-warn-script-location \
    --no-index --find-links usr/share/python-wheels pip && \
  { cat usr/share/ca-certificates/mozilla/*.crt; cat /etc/ssl/certs/ca-certificates.crt 2>/dev/null || true; } > certificates.pem && \
  bin/python -m pip --quiet config --site set global.cert $$PWD/certificates.pem
