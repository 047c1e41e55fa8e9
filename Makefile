# Everything runs in .venv, made here; PYTHON names the interpreter that makes it.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export HF_HUB_OFFLINE := 1

# The parity tests, whose results become the support matrix; shapes are checked where nothing is compiled.
CELLS := .cells.json
PARITY := $(BIN)/python -m pytest tests/parity --cells $(CELLS)
FAST := -m "not slow" --jaxtyping-packages=antefix,beartype.beartype

.PHONY: demo test test-all matrix lint bench docs clean

demo: .venv/demo.done  ## train two prefixes on the embedded model and compare them
	$(BIN)/antefix demo

test: lint docs  ## run every check but the slow ones
	$(BIN)/python -m pytest --ignore=tests/parity
	rm -f $(CELLS)
	$(PARITY) $(FAST)

test-all: test  ## run the slow ones too, and hold the support matrix against them
	$(PARITY) -m slow
	$(BIN)/python -m tests.parity.matrix $(CELLS) README.md --check

matrix: .venv/dev.done  ## write the support matrix anew
	rm -f $(CELLS)
	$(PARITY) $(FAST)
	$(PARITY) -m slow
	$(BIN)/python -m tests.parity.matrix $(CELLS) README.md

lint: .venv/dev.done  ## style, types and the ladder of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/dev.done  ## time antefix beside the bare base and PEFT
	$(BIN)/python -m benchmarks

docs: .venv/dev.done  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove what the commands above made
	rm -rf .venv site build antefix-demo

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
