PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help check-python $(VENV) quickstart test lint format clean

help:  ## List the targets.
	@grep -E '^[.a-z$$()A-Z-]+:.*##' $(MAKEFILE_LIST) \
		| sed -e 's/$$(VENV)/$(VENV)/' -e 's/:.*## */:/' | awk -F: '{printf "make %-12s %s\n", $$1, $$2}'

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
		|| { echo "$(PYTHON) is missing or not Python 3.10 to 3.13; name another one: make PYTHON=python3.11" >&2; exit 2; }

# The stamp is written last, so that an installation that was cut off is made anew. The pip that
# comes with Python 3.10 does not find its way through these dependencies.
$(STAMP): setup.py
	@$(MAKE) -s check-python
	@echo "Installing into $(VENV) (about 2 GB, one to five minutes) ..."
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip -qq --disable-pip-version-check install 'pip>=24.1'
	@$(BIN)/python -m pip -qq install -e '.[test]'
	@touch $@

$(VENV): $(STAMP)  ## Make the environment, once and whenever setup.py changes.

quickstart: $(STAMP)  ## Train, export and measure on scikit-learn's digits.
	$(BIN)/python -m instanas_tf.train
	$(BIN)/export_tflite --expert=all --overwrite
	$(BIN)/android_bench

lint: $(STAMP)  ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## Sort imports and format all files.
	$(BIN)/ruff check --fix-only --select I .
	$(BIN)/ruff format .

test: lint  ## Check style and run all tests.
	$(BIN)/python -m pytest

clean:  ## Remove the environment and what tools left behind; runs/ stays.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
