# `make setup` needs Python 3.11+, make and a C compiler, and puts everything else into .venv.
# Python 3.11 comes first: torch's pinned release (constraints.txt) is tested there.
# The emulated Cortex-M4 also takes a cross compiler and QEMU: apt brings them where it may.

USABLE := -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do $$p $(USABLE) 2>/dev/null && echo $$p && break; done)
NEEDS  := needs Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv); name one with PYTHON=/path/to/python3
PIP    := -m pip install -qq --disable-pip-version-check --progress-bar off
STAMP  := .venv/.setup-stamp
CORE   := build/core-$(notdir $(PYTHON))

ARM_TOOLS  := arm-none-eabi-gcc qemu-system-arm clang
ARM_DEBS   := gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm clang libclang-rt-dev
ARM_STAMP  := build/.arm-stamp
INFERENCES := 100000
INTEROP    := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/asyncinfer/interop
ZOO        := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/asyncinfer/zoo
SCHEDULES  := 10000

# One process more than there are processors, since some tests wait for devices; up to four: each may
# take 2 GB. The files keep their order, in which long ones are not the last.
PROCESSES = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST     = .venv/bin/pytest -q -n $(PROCESSES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: help aarch64 setup demo test coverage test-fast test-core dst hygiene soak-m4 measure-m4 bench bench-short bench-peers interop tiny mixed nets zoo chaos kill9 fuzz fuzz-serve overload lint audit format docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*  ## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP) $(ARM_STAMP)  ## install asyncinfer, its extras and its tools into .venv

$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' && $(PYTHON) $(USABLE) || { echo "make setup: $(NEEDS)" >&2; exit 1; }
	@echo "Installing into .venv with $(PYTHON); the first time takes a few minutes."
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@.venv/bin/python $(PIP) --upgrade pip
	@.venv/bin/python $(PIP) -c constraints.txt -e '.[all]' --group dev
	@.venv/bin/python $(PIP) -c constraints.txt --no-deps facenet-pytorch  # for its weights: it requires an old torch
	@touch $@

$(ARM_STAMP):
	@mkdir -p $(@D); \
	for tool in $(ARM_TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	test -z "$$missing" && exec touch $@; \
	if [ "$$(id -u)" != 0 ]; then sudo=sudo; sudo -n true 2>/dev/null || cannot=1; fi; \
	if [ "$$cannot" ] || ! command -v apt-get >/dev/null; then \
		echo "Without$$missing the Cortex-M4 is not built, emulated and tested in full (Debian: apt-get install $(ARM_DEBS)); all else works." >&2; \
		exec touch $@; \
	fi; \
	echo "Installing$$missing with apt-get, for the emulated Cortex-M4."; \
	apt="$$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300"; \
	{ $$apt update && $$apt install --no-install-recommends -y $(ARM_DEBS); } >/dev/null && exec touch $@; \
	echo "apt-get failed: all but the Cortex-M4 works; 'make setup' tries again" >&2

demo: setup  ## classify real pictures and digits on the devices of this machine
	.venv/bin/asyncinfer demo

test: setup  ## run every test
	$(PYTEST)

coverage: setup  ## the same, with coverage of lines and branches, which takes longer
	$(PYTEST) --cov --cov-report=term:skip-covered

test-fast: setup  ## run the tests that take no more than a moment
	$(PYTEST) -m 'not slow'

test-core: $(CORE)/.stamp  ## run the core's tests without torch: make test-core PYTHON=python3.13
	$(CORE)/bin/pytest -q tests/core

$(CORE)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -m venv --clear $(CORE)
	@$(CORE)/bin/python $(PIP) --upgrade pip
	@$(CORE)/bin/python $(PIP) -c constraints.txt -e '.[uvloop]' --group test
	@touch $@

dst: setup  ## simulate random schedules of faults, checking every promise: make dst SCHEDULES=100000
	.venv/bin/python tests/dst/run.py --schedules $(SCHEDULES)

hygiene: setup  ## tasks that fail in every way, and nothing left of them: make hygiene TASKS=1000000
	.venv/bin/python tests/core/hygiene.py --tasks $(or $(TASKS),1000000)

soak-m4: setup  ## infer through a faulty line, resets and cuts: make soak-m4 INFERENCES=100000
	.venv/bin/python tests/hardware/soak.py --inferences $(INFERENCES)

measure-m4: setup  ## measure the link to the Cortex-M4, its utilisation and its overhead
	.venv/bin/python -m asyncinfer_drivers.cortex_m.measure link
	.venv/bin/python -m asyncinfer_drivers.cortex_m.measure compute
	.venv/bin/python -m asyncinfer_drivers.cortex_m.measure overhead

bench: setup  ## measure everything, in less than half an hour: out/bench/report.md, runs.csv
	@mkdir -p out/bench
	.venv/bin/asyncinfer bench --suite all --report out/bench/report.md --output out/bench/runs.csv

bench-short: setup  ## the same in some two minutes; what the clock says is shown and not insisted on
	.venv/bin/asyncinfer bench --suite all --short

bench-peers: setup  ## install the peers, each in an environment of its own, and measure beside them
	.venv/bin/python -m asyncinfer.bench.peers
	@mkdir -p out/peers
	.venv/bin/asyncinfer bench --suite peers --report out/peers/report.md

interop: setup  ## install Triton, KServe and MLServer, each by itself (1 GB), and try everything with each
	ASYNCINFER_INTEROP=$(INTEROP) .venv/bin/python -W ignore tests/interop/run.py
	ASYNCINFER_INTEROP=$(INTEROP) .venv/bin/python -W ignore tests/interop/rates.py
	ASYNCINFER_INTEROP=$(INTEROP) .venv/bin/pytest -q tests/drivers/open_inference/test_mlserver.py

aarch64: setup  ## run the core's tests as programs of the Raspberry Pi's processor, emulated; not in CI
	tests/hardware/aarch64.sh build/aarch64 tests/core

tiny: setup  ## build and emulate MLPerf Tiny's four nets, and time a calibration: a few minutes
	.venv/bin/python -W ignore tests/hardware/tiny.py
	.venv/bin/python -W ignore tests/hardware/tiny.py --calibration

mixed: setup  ## a stream over five unlike devices, three of which are struck down: make mixed TASKS=10000
	.venv/bin/python tests/hardware/mixed.py --tasks $(or $(TASKS),10000)

nets:  ## build some sixty nets and run them on the emulated board: make nets NETS="unet tcn"
	PYTHONPATH=.:drivers .venv/bin/python -W ignore tests/nets/run.py $(NETS)

zoo: $(ZOO)/.stamp  ## run models of others beside their plain calls (7 GB to install): make zoo MODELS="gpt2 yolo"
	PYTHONPATH=.:drivers $(ZOO)/bin/python -W ignore tests/zoo/page.py
	PYTHONPATH=.:drivers $(ZOO)/bin/python -W ignore tests/zoo/run.py --models $(MODELS)

$(ZOO)/.stamp: tests/zoo/requirements.txt
	@$(PYTHON) -m venv --clear $(ZOO)
	@$(ZOO)/bin/python $(PIP) -r tests/zoo/requirements.txt
	@$(ZOO)/bin/python $(PIP) --no-deps facenet-pytorch==2.6.0
	@touch $@

chaos: setup  ## strike real devices at random, one after another: make chaos MINUTES=10
	.venv/bin/python tests/hardware/chaos.py --minutes $(or $(MINUTES),10) --seed $(or $(SEED),42)

kill9: setup  ## kill a job again and again, and see that its file ends complete: make kill9 KILLS=50
	.venv/bin/python tests/cli/kill_resume.py --kills $(or $(KILLS),50)

fuzz:  ## give the firmware's parser to libFuzzer: make fuzz RUNS=10000000
	@mkdir -p build
	clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
	  -Idrivers/firmware/include -Idrivers/firmware/src \
	  tests/firmware/fuzz_frame.c drivers/firmware/src/frame.c -o build/fuzz-frame
	build/fuzz-frame -runs=$(or $(RUNS),10000000) -max_len=2048 -verbosity=0 -print_final_stats=1

fuzz-serve: setup  ## send wrong requests to a server: make fuzz-serve REQUESTS=1000000
	.venv/bin/python tests/serve/serve_fuzz.py --requests $(or $(REQUESTS),100000)

overload: setup  ## send a server four times what it can do: make overload SECONDS=60
	.venv/bin/python tests/serve/serve_overload.py --seconds $(or $(SECONDS),60)

lint: setup  ## check style, types and the layers of imports
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/pyright
	.venv/bin/lint-imports --no-logo --no-cache

audit: setup  ## look for known vulnerabilities in what is installed, and for unsafe code
	.venv/bin/ruff check --select S --ignore S311
	.venv/bin/python .ci/audit.py

format: setup  ## put the code into its standard form
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

docs: setup  ## build the documentation into site/
	.venv/bin/mkdocs build --strict

clean:  ## remove what the other targets made, .venv included
	rm -rf .venv build dist site out .coverage .*_cache .hypothesis

.PHONY: interop-serve
interop-serve: setup  ## try the server with others' clients, each in an environment of its own
	ASYNCINFER_INTEROP=$(or $(ASYNCINFER_INTEROP),$(INTEROP)) .venv/bin/python -W ignore tests/interop/serve_clients.py
