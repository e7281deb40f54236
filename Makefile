# Every target creates .venv if it is missing. Needs Python 3.11 or later with venv, and a package registry that pip reaches.
# Choose another Python with `make PYTHON=python3.12 test`; pass arguments with `make ARGS="--steps 100" demo`.

PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check install -c constraints.txt

.PHONY: demo test test-slow lint docs wheel-test sanitize bench bench-full peers clean

demo: .venv/.demo
	.venv/bin/python examples/Perceiver/demo.py $(ARGS)

test: .venv/.all
	.venv/bin/python -m pytest -m "not slow" $(ARGS)

test-slow: .venv/.all
	.venv/bin/python -m pytest -m slow $(ARGS)

lint: .venv/.all
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright
	.venv/bin/python tools/language.py

docs: .venv/.all
	.venv/bin/mkdocs build --strict $(ARGS)

wheel-test: .venv/.all
	.venv/bin/python -m tools.wheel_test $(ARGS)

sanitize: .venv/.all
	.venv/bin/python tools/sanitize.py $(ARGS)

bench: peers
	.venv/bin/python -m benchmarks.cross_attention $(ARGS)
	.venv/bin/python -m benchmarks.models $(ARGS)

bench-full: peers
	.venv/bin/python -m benchmarks.cross_attention --full $(ARGS)
	.venv/bin/python -m benchmarks.models --full $(ARGS)
	.venv/bin/python -m benchmarks.published $(ARGS)
	.venv/bin/python -m benchmarks.memory $(ARGS)

# A library that does not install is left out of the tables, with the reason.
peers: .venv/.all
	-.venv/bin/python -m benchmarks.peers

clean:
	rm -rf .venv .venv-peers build dist site *.egg-info perceivers/kernels/_separable.* .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# Stamp files record which extras are installed; a changed requirement or C file installs them again.
SOURCES := pyproject.toml constraints.txt setup.py perceivers/kernels/separable.c

.venv/.demo: .venv/bin/python $(SOURCES)
	$(PIP) -e '.[demo]'
	touch $@

.venv/.all: .venv/bin/python $(SOURCES)
	$(PIP) -e '.[demo,train,test,onnx,dev,docs]'
	touch $@ .venv/.demo
