# Needs make and Python 3.11 or 3.12; everything else goes into .venv.
# Another Python:        make run PYTHON=/path/to/python3.11
# Another torch build:   make run TORCH_INDEX=<the index that https://pytorch.org/get-started names>
#                        (after a `make clean-venv`, where one is installed already)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
TORCH_INDEX ?=
# The one place of the pin is pyproject.toml.
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
TORCH_STAMP := $(VENV)/.$(subst ==,-,$(subst .*,,$(TORCH)))
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# One thread a test process: two of them run side by side.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Exit code 5: no examples in there.
DOCTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --doctest-modules medkit || [ $$? -eq 5 ]

.PHONY: help run test test-all lab lint format bench lock pin-image container-check hooks clean clean-venv
.PHONY: setup setup-lab setup-dev

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

run: setup ## set everything up and run the first notebook as a job on the sample data
	@$(BIN)/medkit run notebooks/01_first_training.ipynb -p quick True

test: setup-dev ## set everything up and pass the tests, in minutes
	@$(PYTEST) -q -m "not slow"
	@$(DOCTEST)

test-all: setup-dev ## all tests, those that take long and the container build included
	@$(PYTEST)
	@$(DOCTEST)

lab: setup-lab ## JupyterLab on 127.0.0.1 with a random token; LAB="--no-browser" passes options on
	@$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 $(LAB)

lint: setup-dev ## ruff (notebooks too), its formatter, mypy, hadolint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/hadolint --config .hadolint.yaml Dockerfile

format: setup-dev ## let ruff format and mend what it can
	@$(BIN)/ruff check --fix --exit-zero .
	@$(BIN)/ruff format .

bench: setup-dev ## run every benchmark and write the table; BENCH=--quick for a short look
	@$(BIN)/python tools/bench.py $(BENCH)

lock: setup-dev ## write locks/*.txt anew; UPGRADE=1 takes the newest versions
	@$(BIN)/python -c "import uv" 2>/dev/null || $(PIP) install uv
	@$(BIN)/python tools/lock.py $(if $(UPGRADE),--upgrade)

pin-image: $(VENV)/.python ## write the digest of the CUDA base into the Dockerfile
	@$(BIN)/python tools/pin_image.py

container-check: setup-dev ## hadolint and the tests of the Dockerfile and its entrypoint
	@$(BIN)/hadolint --config .hadolint.yaml Dockerfile
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_container.py

hooks: setup-dev ## run the checks of .pre-commit-config.yaml before each commit
	@$(BIN)/pre-commit install

clean: ## remove caches and builds; runs/ and .venv stay
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-venv: ## remove .venv
	@rm -rf $(VENV)

# What is set up says so in a stamp, newer than what it was made from.
setup: $(VENV)/.train
setup-lab: $(VENV)/.lab
setup-dev: $(VENV)/.dev

$(VENV)/.python:
	@python="$(PYTHON)"; \
	for candidate in $${python:-python3.11 python3 python3.12}; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; \
	  then found="$$candidate"; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "medkit needs Python 3.11 or 3.12; tried: $${python:-python3.11 python3 python3.12}." >&2; \
	  echo "Install python3.11 (and python3.11-venv on Debian), or say where it is: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	echo "setting up: $(VENV) with $$($$found --version)"; \
	rm -rf $(VENV); \
	"$$found" -m venv $(VENV)
	@touch $@

# torch first and by pip: which build fits is the machine's own business.
$(TORCH_STAMP): $(VENV)/.python
	@echo "setting up: $(TORCH) (the largest download; minutes the first time)"
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

$(VENV)/.train $(VENV)/.lab $(VENV)/.dev: $(VENV)/.%: locks/%.txt pyproject.toml $(TORCH_STAMP)
	@echo "setting up: $$(grep -c '^[a-z]' $<) packages of $<, hashes checked"
	@$(PIP) install --no-deps --require-hashes -r $<
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(BIN)/python tools/check_torch.py
	@touch $@
