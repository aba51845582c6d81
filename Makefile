# `make demo` and `make test` need CPython 3.11 or newer, git and make; the rest is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
# One process for each core, one thread for each process.
WORKERS ?= auto --maxprocesses 8
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)
CLI_PAGE := $(BIN)/typer secateur.cli.app utils docs --name secateur --title 'Command line'
FAMILIES_PAGE := $(BIN)/python -m secateur.families.describe
PARTS := $(BIN)/python -m website.blocks
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
FORMATTED := src tests benchmarks website

.PHONY: demo test slow llama-cpp lint docs docs-check site clean

demo: $(VENV)/.installed
	$(BIN)/secateur demo

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow || [ $$? -eq 5 ] # 5: no test is marked slow

# llama.cpp for the tests of GGUF files: built from source, 7 minutes on two cores.
llama-cpp: $(VENV)/.installed-dev
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAVA_BUILD=OFF" \
		$(PIP_INSTALL) llama-cpp-python

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(FORMATTED)
	$(BIN)/ruff format --check $(FORMATTED)
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(CLI_PAGE) > docs/cli.md
	$(FAMILIES_PAGE) > docs/families.md
	$(PARTS)

docs-check: $(VENV)/.installed-dev
	@$(CLI_PAGE) | diff - docs/cli.md && $(FAMILIES_PAGE) | diff - docs/families.md || \
		{ echo "the pages above are not what the program says: run make docs" >&2; exit 1; }
	@$(PARTS) --check
	@$(SITE)

site: $(VENV)/.installed-dev
	$(SITE)
	@echo "open build/site/index.html"

clean:
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e ".[dev]"
	@touch $(VENV)/.installed $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install CPython 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import platform, sys; ok = sys.version_info >= (3, 11) and platform.python_implementation() == "CPython"; sys.exit(0 if ok else "$(PYTHON) is %s %s; CPython 3.11 or newer is needed. Name one: make PYTHON=/path/to/python3.11" % (platform.python_implementation(), platform.python_version()))'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) could not make a virtual environment; its venv module is needed (Debian: python3-venv)." >&2; exit 2; }
