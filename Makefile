# Every target needs only Python and make: it installs into .venv, and later calls reuse that folder.
PYTHON ?= python3
STAMP := .venv/.installed
WEB = upstream/distilled_student/web/page/ort
RUNTIME = ort.wasm.bundle.min.mjs ort-wasm-simd-threaded.wasm
REPORT = exp/benchmark/$(1)/results.json
ACCURACY = $(if $(wildcard $(call REPORT,sizes)),--accuracy embedded=$(call REPORT,sizes)) \
	$(if $(wildcard $(call REPORT,sizes-real)),--accuracy real=$(call REPORT,sizes-real))

.PHONY: demo test stress golden bench speed lint web

demo: $(STAMP)
	.venv/bin/distilled-student demo

test: $(STAMP)
	.venv/bin/python -m pytest -n auto

# kills, damaged files, bad inputs and a large corpus: twenty minutes; prints what was tried and the failures
stress: $(STAMP)
	.venv/bin/python tests/stress/run.py

# an hour of audio, or AUDIO="a.wav b.wav", through PyTorch, ONNX, the Wyoming server and the browser: one table of hits
golden: $(STAMP)
	.venv/bin/python tests/stress/golden.py $(AUDIO)

# trains the sizes that are not trained yet (hours), then measures speed; with DISTILLED_STUDENT_DATA also real speech
bench: $(STAMP)
	.venv/bin/distilled-student benchmark sizes
	$(if $(DISTILLED_STUDENT_DATA),.venv/bin/distilled-student benchmark sizes-real --data "$(DISTILLED_STUDENT_DATA)")
	$(MAKE) --no-print-directory speed

# measures speed, without the trainings
speed: $(STAMP)
	.venv/bin/distilled-student speed --history docs/speed-history.jsonl $(ACCURACY)

# puts onnxruntime-web next to the page, which then needs no network; needs npm
web:
	npm ci --omit=dev --ignore-scripts --no-audit --no-fund
	mkdir -p $(WEB)
	cp $(addprefix node_modules/onnxruntime-web/dist/,$(RUNTIME)) $(WEB)
	@echo "distilled-student web serves the page without a network; after pip install . or ./run, install it again"

lint: $(STAMP)
	.venv/bin/python -m ruff check . && .venv/bin/python -m ruff format --check .

$(STAMP): setup.py pyproject.toml
	@echo "Installing distilled-student and its libraries into .venv (once; torch is a download of some gigabytes)"
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --editable ".[dev]"
	@touch $@
	@echo "Installed; later runs reuse .venv"
