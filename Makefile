# `make generate`: everything from a fresh clone to pictures. `make test`: everything to a test report.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/demo
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup generate chromium test lint format clean

setup: $(VENV)/.ready

# pip only: the exact versions of constraints.txt, and this folder as an editable install.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else \
	  f"Python {sys.version.split()[0]} is not supported: take 3.11 to 3.13, e.g. make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned stack into $(VENV) (about 6 GB; once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

generate: setup  ## 24 people x 16 variants with the built-in demo network
	$(BIN)/python jobs/generate.py --people 24 --variants 16 --unit-images 64 --out $(abspath $(OUT))

# For the tests of the pages that jobs write, which are looked at in a real browser. Needs root, and Debian or Ubuntu.
chromium:
	command -v chromium >/dev/null || (apt-get update && apt-get install -y --no-install-recommends chromium)

test: setup  ## every test; those of pages in a browser only where there is one (make chromium)
	$(BIN)/python -m pytest $(ARGS)

lint: setup  ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out
