# `make help` lists the verbs. Everything made lives in .venv and build/; `make clean` removes both.

.PHONY: help build serve test test-slow test-clients sanitize lint format types docs clean
.DEFAULT_GOAL := help

# Three stamps: serving needs the product and the model, then what computes on this machine; the tools of lint, types
# and test, and torch as the reference, come only with `build`.
SERVE := .venv/.serve
NATIVE := .venv/.native
DEV := .venv/.dev
KERNELS := backends/kernels/build.py backends/kernels/cpu.cpp $(wildcard backends/kernels/cpu/*)
PINS := pyproject.toml setup.py constraints.txt .ci/venv
SOURCES := backends batching bench docs gateway sessioncache setup.py tests

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' Makefile

build: $(DEV) $(NATIVE)  ## make .venv: the product, the embedded model, torch as the reference, and the tools below

serve: $(NATIVE)  ## start the gateway with gateway.toml and one CPU worker; Ctrl-C drains and stops it
	@exec .venv/bin/tidegate serve gateway.toml

test: $(DEV) $(NATIVE)  ## run the tests, with coverage of everything that is free of torch (at least 85 %)
	@OMP_WAIT_POLICY=passive .venv/bin/pytest --cov --cov-fail-under=85 -m "not slow and not clients"

test-slow: $(DEV) $(NATIVE)  ## run the fuzz, soak and browser tests
	@.venv/bin/pytest -m slow

test-clients: $(DEV)  ## run the JavaScript clients and OpenClaw; the first time downloads them (900 MB) into build/clients
	@.venv/bin/pytest --no-cov -m clients

# Of ASan's checks all but leaks, which Python is full of; torch is left out, as it brings an OpenMP that trips ASan.
SANITIZED := TIDEGATE_KERNEL_FLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover"
sanitize: $(DEV)  ## run the tests of the native library with it compiled for ASan and UBSan
	@$(SANITIZED) .venv/bin/python -m backends.kernels.build
	@$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so.6)" \
	  .venv/bin/pytest -q --no-cov -p no:randomly tests/test_native_ops.py tests/test_native_step.py tests/test_native.py tests/test_native_company.py \
	  tests/test_kvtransform.py -m "not slow" -k "not calibration"

lint: $(DEV) $(NATIVE)  ## check style, formatting, the layout of the code and the docs
	@.venv/bin/ruff check $(SOURCES)
	@.venv/bin/ruff format --check $(SOURCES)
	@.venv/bin/pytest -q --no-cov tests/test_layout.py tests/test_docs.py tests/test_schema.py

format: $(DEV)  ## let ruff format and fix what it can
	@.venv/bin/ruff format $(SOURCES)
	@.venv/bin/ruff check --fix $(SOURCES)

types: $(DEV)  ## run mypy --strict
	@.venv/bin/mypy

docs: $(SERVE)  ## write the generated parts of the docs: files, metrics, command line
	@.venv/bin/python docs/generate.py

# Its script has another name: beside the others, a batching.py would stand in the way of our package of that name.
bench-batching: $(DEV) $(NATIVE)
	@.venv/bin/python bench/arrivals.py

bench-%: $(DEV) $(NATIVE)  ## print one benchmark's table and write build/bench/NAME.json, e.g. make bench-baseline
	@.venv/bin/python bench/$*.py

clean:  ## remove .venv and build/
	rm -rf .venv build dist *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(SERVE): $(PINS)
	@.ci/venv serve

$(NATIVE): $(SERVE) $(KERNELS)
	@.ci/venv native

$(DEV): $(SERVE)
	@.ci/venv dev
