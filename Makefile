# Everything a user or CI runs. Each environment is made once and again when setup.py changes.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TEST_PROCESSES ?= logical
MATRIX = 3.11 3.12 3.13

.PHONY: quickstart test lint test-matrix test-parity test-extras plan-table test-tpu-plan faults parallel audit clean

quickstart: $(VENV)/.installed
	$(BIN)/pretrain run --gin_file=gin_configs/runs/quickstart.gin --workdir=runs/quickstart

# In as many processes as there are cores, 4 at most; TEST_PROCESSES=0 for one.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --maxprocesses=4 --dist loadfile tests

# Faults in full: kills, damaged checkpoints, spikes, lost hosts, mutated input. FAULT_SEED=1 draws others.
faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -s tests/faults

# Every kind of parallelism and their combinations on 8 forced host devices against one: a quarter of an hour.
parallel: $(VENV)/.installed-dev
	PYTHONPATH=.:tests:tests/objectives XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu \
	  JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python tests/sharding/equal_on_eight.py all

# Exact versions and a software bill of materials (CycloneDX) in build/audit, by a tool in an environment of its own.
audit: $(VENV)/.installed-dev .venv-audit/.installed
	.venv-audit/bin/python .ci/audit.py $(BIN)/python build/audit

.venv-audit/.installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom
	touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# The tests on every interpreter from 3.11 to 3.13 that is found, each with the newest jax it can have.
test-matrix:
	@for version in $(MATRIX); do \
	  python=$$(sh .ci/find_python $$version) || { echo "python $$version: not found, not tested"; continue; }; \
	  echo "python $$version: $$python"; \
	  $(MAKE) test PYTHON=$$python VENV=.venv-$$version || exit 1; \
	done

# Our models against torch, in an environment of its own: about 2 minutes after the install.
test-parity: .venv-parity/.installed
	.venv-parity/bin/python -m pytest --noconftest tests/parity

.venv-parity/.installed: setup.py
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -e '.[interop]' pytest torch transformers
	touch $@

# What needs the simulator, scikit-learn or espeak-ng (apt-get install espeak-ng), in an environment of its own.
test-extras: .venv-extras/.installed
	.venv-extras/bin/python -m pytest --noconftest tests/extras

.venv-extras/.installed: setup.py
	$(PYTHON) -m venv .venv-extras
	.venv-extras/bin/python -m pip install --quiet --disable-pip-version-check -e '.[data,robots,digits]' pytest
	touch $@

# Plans compiled by the TPU compiler, which needs no TPU: the table of docs/scale.md, and a regression test of its quick rows.
plan-table: .venv-tpu/.installed
	.venv-tpu/bin/python benchmarks/pod_plans.py --write $(ARGS)

test-tpu-plan: .venv-tpu/.installed
	.venv-tpu/bin/python -m pytest --noconftest tests/tpu_plan

.venv-tpu/.installed: setup.py
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --disable-pip-version-check -e '.[tpu]' pytest
	touch $@

# Any benchmark: `make benchmark-near-dedup ARGS='CORPUS --peer_python=...'`; docs/ says what each shows and how it was run.
benchmark-%: $(VENV)/.installed
	PYTHONPATH=. $(BIN)/python benchmarks/$(subst -,_,$*).py $(ARGS)

clean:
	rm -rf $(VENV) .venv-3.* .venv-parity .venv-audit .venv-tpu build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[data]'
	touch $@

$(VENV)/.installed-dev: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[data,interop,dev]'
	touch $(VENV)/.installed $@
