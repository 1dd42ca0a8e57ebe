# Every target needs only Python and make: it installs into .venv, and later calls reuse that folder.
PYTHON ?= python3
STAMP := .venv/.installed
REPORT = exp/benchmark/$(1)/results.json
ACCURACY = $(if $(wildcard $(call REPORT,sizes)),--accuracy embedded=$(call REPORT,sizes)) \
	$(if $(wildcard $(call REPORT,sizes-real)),--accuracy real=$(call REPORT,sizes-real))

.PHONY: demo test stress bench speed lint

demo: $(STAMP)
	.venv/bin/distilled-student demo

test: $(STAMP)
	.venv/bin/python -m pytest -n auto

# kills, damaged files, bad inputs and a large corpus: twenty minutes; prints what was tried and the failures
stress: $(STAMP)
	.venv/bin/python tests/stress/run.py

# trains the sizes that are not trained yet (hours), then measures speed; with DISTILLED_STUDENT_DATA also real speech
bench: $(STAMP)
	.venv/bin/distilled-student benchmark sizes
	$(if $(DISTILLED_STUDENT_DATA),.venv/bin/distilled-student benchmark sizes-real --data "$(DISTILLED_STUDENT_DATA)")
	$(MAKE) --no-print-directory speed

# measures speed, without the trainings
speed: $(STAMP)
	.venv/bin/distilled-student speed --history docs/speed-history.jsonl $(ACCURACY)

lint: $(STAMP)
	.venv/bin/python -m ruff check . && .venv/bin/python -m ruff format --check .

$(STAMP): setup.py pyproject.toml
	@echo "Installing distilled-student and its libraries into .venv (once; torch is a download of some gigabytes)"
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --editable ".[dev]"
	@touch $@
	@echo "Installed; later runs reuse .venv"
