# `make demo` and `make test` are complete on a machine with Python and make: they create .venv and reuse it.
PYTHON ?= python3
STAMP := .venv/.installed

.PHONY: demo test bench lint

demo: $(STAMP)
	.venv/bin/distilled-student demo

test: $(STAMP)
	.venv/bin/python -m pytest

bench: $(STAMP)
	.venv/bin/distilled-student speed --history docs/speed-history.jsonl

lint: $(STAMP)
	.venv/bin/python -m ruff check . && .venv/bin/python -m ruff format --check .

$(STAMP): setup.py pyproject.toml
	@echo "Installing distilled-student and its libraries into .venv (once; torch is a download of some gigabytes)"
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --editable ".[dev]"
	@touch $@
	@echo "Installed; later runs reuse .venv"
