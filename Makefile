# Every target sets up what it needs, from any state of this folder, and can be run again.
#   make demo PYTHON=/path/to/python3.12 DEMO_FLAGS="--prompt='Why is the sky blue?'"
# uv is used when it is on PATH, else venv and pip. See tools/environment.sh.

SHELL := /bin/bash
PYTHON ?=
export PYTHON
VENV := .venv
DEMO_CUT ?= --cuts=31
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
FAULTS ?= 200
PASSES ?= 2000
SEED ?= 1
# The suite in one process a core; empty for one process.
WORKERS ?= -n logical
# Long suites that call no JAX of their own, or hurt what others try: `make test` runs them, once is enough.
ONCE := tests/test_house.py tests/test_loading_memory.py tests/models/test_fuzz.py tests/faults tests/planning/groups tests/planning/solvers tests/planning/test_objectives.py tests/planning/test_presets.py tests/planning/test_presets_of_images.py
# What uses JAX as other suites do, or hardly: on the oldest one they are enough.
NOT_ON_FLOOR := tests/planning tests/devices tests/fabric tests/runtime/workers tests/serving tests/models tests/verification tests/test_notebook.py
OVERHEAD_FLAGS ?= --json=benchmarks/results/overhead.json
PIPELINE_FLAGS ?= --json=benchmarks/results/pipeline.json
FABRIC_FLAGS ?= --json=benchmarks/results/fabric.json
VERIFY_FLAGS ?= --json=benchmarks/results/verification.json
MODELS_FLAGS ?= --json=benchmarks/results/models.json
SILICON_FLAGS ?= --json=benchmarks/results/silicon.json

# Of a device: the extra that installs its backend, where pip can, in an environment of its own.
PLATFORM ?=
DEVICE_EXTRA := $(filter cuda rocm tpu,$(PLATFORM))
DEVICE_VENV := $(VENV)$(DEVICE_EXTRA:%=-%)

.PHONY: help notebook demo test test-device lint parity test-floor test-py312 bench-quick bench-cost bench-placement bench-scale bench-models bench-fabric bench-overhead bench-pipeline bench-silicon verify-hardware test-ray test-faults clean

help:
	@echo "make demo         run a language model cut across two backends"
	@echo "make test         run the tests"
	@echo "make notebook     make notebooks/quickstart.ipynb of its source"
	@echo "make test-device PLATFORM=cuda|rocm|tpu|NAME  try gimlax on a device, NAME as its plugin registers it"
	@echo "make test-faults  do 200 faults to workers and their links, checking 2,000 passes (FAULTS, PASSES, SEED)"
	@echo "make lint         ruff and pyright"
	@echo "make parity       compare with another implementation (installs torch)"
	@echo "make test-floor   run the tests on the oldest JAX that is supported"
	@echo "make test-py312   run the tests on Python 3.12 and the newest JAX"
	@echo "make test-ray     run the tests that need Ray (installs it)"
	@echo "make bench-quick  run each benchmark briefly"
	@echo "make bench-cost   compare predicted with measured times of stages, on one core"
	@echo "make bench-placement  solve published placement problems (PLACEMENT_FLAGS=--data_dir=DIR or --random=100)"
	@echo "make bench-fabric measure links between processes, next to Ray and JAX's transfer server"
	@echo "make bench-overhead  measure what a call, a stage and a worker cost, next to SpectraX"
	@echo "make bench-pipeline  measure two workers of one core each, next to torch and llama.cpp"
	@echo "make bench-models  load, compile and run models of each architecture, with their memory"
	@echo "make bench-scale  plan Llama-3-70B for 64, 256 and 1,024 devices of four kinds"
	@echo "make bench-silicon  score fitted coefficients on measured kernels of real accelerators"
	@echo "make verify-hardware  compile SmolLM2 and Llama-3-8B for TPUs and an H100 that are not here"
	@echo "make clean        remove the environments and caches"

demo:
	@tools/environment.sh $(VENV) text
	@$(VENV)/bin/python scripts/generate.py $(DEMO_CUT) --check $(DEMO_FLAGS)

test:
	@tools/environment.sh $(VENV) text,test
	$(VENV)/bin/python -m pytest $(WORKERS) $(PYTEST_FLAGS)

notebook:
	@tools/environment.sh $(VENV) text,test
	$(VENV)/bin/python tools/notebook.py notebooks/quickstart.py

test-device:
	@test -n "$(PLATFORM)" || { echo "say which: make test-device PLATFORM=cuda|rocm|tpu|NAME"; exit 2; }
	@tools/environment.sh $(DEVICE_VENV) text,test,ray$(DEVICE_EXTRA:%=,%)
	$(DEVICE_VENV)/bin/python -m pytest tests/device --platform=$(PLATFORM) -rs -W default $(PYTEST_FLAGS)
	JAX_PLATFORMS=cpu $(DEVICE_VENV)/bin/python -m pytest tests/device_on_ray --platform=$(PLATFORM) -rs -W default $(PYTEST_FLAGS)

lint:
	@tools/environment.sh $(VENV) text,test,lint
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m pyright --pythonpath $(VENV)/bin/python

parity:
	@tools/environment.sh .venv-parity text,test,parity
	OMP_NUM_THREADS=1 .venv-parity/bin/python -m pytest $(WORKERS) tests/parity -rs $(PYTEST_FLAGS)

test-floor:
	@tools/environment.sh .venv-floor text,test requirements/floor.txt
	.venv-floor/bin/python -m pytest $(WORKERS) $(patsubst %,--ignore=%,$(ONCE) $(NOT_ON_FLOOR)) $(PYTEST_FLAGS)

test-faults:
	@tools/environment.sh $(VENV) text,test
	GIMLAX_FAULTS=$(FAULTS) GIMLAX_PASSES=$(PASSES) GIMLAX_SEED=$(SEED) $(VENV)/bin/python -m pytest tests/faults -s $(PYTEST_FLAGS)

test-py312:
	@WANTED_PYTHON=3.12 tools/environment.sh .venv-py312 text,test
	.venv-py312/bin/python -m pytest $(WORKERS) $(ONCE:%=--ignore=%) $(PYTEST_FLAGS)

test-ray:
	@tools/environment.sh .venv-ray text,test,ray
	.venv-ray/bin/python -m pytest tests/hosts tests/devices/test_found_hosts.py tests/runtime/workers/test_on_ray.py -rs $(PYTEST_FLAGS)

bench-quick:
	@tools/environment.sh $(VENV) text
	$(VENV)/bin/python benchmarks/overhead.py --quick
	$(VENV)/bin/python benchmarks/generate.py --quick

bench-cost:
	@tools/environment.sh $(VENV) text
	$(VENV)/bin/python benchmarks/cost_model.py --cores=1 $(COST_FLAGS)

bench-placement:
	@tools/environment.sh $(VENV) text
	$(VENV)/bin/python benchmarks/placement.py $(PLACEMENT_FLAGS)

bench-fabric:
	@tools/environment.sh .venv-ray ray
	.venv-ray/bin/python benchmarks/fabric.py $(FABRIC_FLAGS)

# A peer that cannot be installed is left out.
bench-overhead:
	@tools/environment.sh $(VENV) text,workers
	@tools/environment.sh .venv-spectrax spectrax || echo "without SpectraX"
	$(VENV)/bin/python benchmarks/overhead.py --spectrax=.venv-spectrax $(OVERHEAD_FLAGS)

bench-pipeline:
	@tools/environment.sh $(VENV) text,workers
	@tools/environment.sh .venv-parity text,test,parity || echo "without torch"
	@CMAKE_ARGS="-DGGML_RPC=ON -DLLAVA_BUILD=OFF" \
	  tools/environment.sh .venv-llamacpp text,llamacpp || echo "without llama.cpp"
	$(VENV)/bin/python benchmarks/pipeline.py --torch=.venv-parity --llama=.venv-llamacpp $(PIPELINE_FLAGS)

bench-scale:
	@tools/environment.sh $(VENV) text
	$(VENV)/bin/python benchmarks/scale.py $(SCALE_FLAGS)

bench-models:
	@tools/environment.sh $(VENV) text
	$(VENV)/bin/python benchmarks/models.py $(MODELS_FLAGS)

bench-silicon:
	@tools/environment.sh .venv-silicon silicon requirements/silicon.txt
	.venv-silicon/bin/python benchmarks/silicon.py $(SILICON_FLAGS)

verify-hardware:
	@tools/environment.sh $(VENV) text,verify
	@tools/environment.sh .venv-tpu verify-tpu
	@tools/environment.sh .venv-cuda verify-cuda
	$(VENV)/bin/python scripts/verify.py --model=smollm2-135m,llama3-8b \
	  --topology='v5e:2x2,v6e:2x2,H100 SXM' --tpu_python=.venv-tpu/bin/python \
	  --cuda_python=.venv-cuda/bin/python $(VERIFY_FLAGS)

clean:
	rm -rf .venv .venv-* .venv*.lock .venv*.installing build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
