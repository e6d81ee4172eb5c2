# `make demo` and `make test` each do all their own set-up in .venv; PYTHON chooses the interpreter (3.10 - 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo/deit_s
DIGITS := demo/digits
WORKERS ?= 2

.PHONY: demo test check lint hooks bench clean

demo: $(VENV)/.demo
	$(BIN)/dec-export build --backbone digits --out $(DIGITS) --force
	$(BIN)/dec-export build --backbone deit_s --samples 4 --out $(DEMO) --force
	@echo "Bundles: $(DIGITS) and $(DEMO). Open $(DIGITS)/parity.html and $(DEMO)/parity.html: pictures, accuracy, proof."

# Everything.
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# What a developer runs before every commit: style, types, the import rule, and the tests that build no bundle.
check: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --fast

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Let git run the same checks at every commit.
hooks: $(VENV)/.test
	$(BIN)/pre-commit install

bench: demo
	$(BIN)/dec-export bench $(DEMO)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else f"Python 3.10 - 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}: run make PYTHON=python3.12 or the like.")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.python pyproject.toml
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) demo build dist *.egg-info
