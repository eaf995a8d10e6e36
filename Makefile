# swave. `make help` lists the targets; each one sets up the environment first.
CONFIG ?= config/demo.yaml
ARGS   ?=
DALI   ?= cuda120
PYTHON ?= python3
LOCK   := requirements-$(DALI).lock
WHEELS ?=
VENV   := .venv/bin/python
# Container images often set it. Without bytecode each start of a process takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup help-settings default-yaml train report cluster-check data convert preview stats export bench profile science zero-check kill-check faults fuzz long-run gpu-check sync wheels test test-fast mutation-check lint lock clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  CONFIG=config/demo.yaml   the recipe;  ARGS=\"data.path=/my/images crops.local.count=4\" overrides its settings"
	@echo "  PROCS=2                   processes on this machine (default: one per GPU, 2 without GPUs)"
	@echo "  NODES=4 GPUS=8            train on 4 nodes of HOSTFILE=hosts, or else of the SLURM job; DRY=1 only prints the commands"
	@echo "  DALI=cuda120|cuda130      DALI wheel;  PYTHON=python3.12  Python to use;  WHEELS=wheels  set up from these, without a network"

setup: ## create the virtual environment .venv from the lock file (every other target does this first)
	@launch/setup.sh $(LOCK) $(PYTHON) $(WHEELS)

help-settings: setup ## print every setting with default, range and help; KEY=optimizer: only these
	@$(VENV) -m config.schema $(KEY)

NODE_OPTIONS = $(if $(NODES),--nodes $(NODES)) $(if $(GPUS)$(PROCS),--processes $(or $(GPUS),$(PROCS))) \
	  $(if $(HOSTFILE),--hostfile "$(HOSTFILE)") $(if $(SSH),--ssh "$(SSH)")

train: setup ## train CONFIG (default: the Fashion-MNIST demo); run it again to resume
	@$(VENV) -m launch.start $(NODE_OPTIONS) $(if $(LAUNCHER),--launcher $(LAUNCHER)) $(if $(DRY),--dry) "$(CONFIG)" $(ARGS)

report: setup ## RUN=runs/demo: report.html of a run from what it has written; RUN="runs/a runs/b": several side by side
	@$(VENV) -m evaluation.report $(or $(RUN),runs/demo) $(if $(OUT),--out "$(OUT)") $(ARGS)

cluster-check: setup ## NODES=4 HOSTFILE=hosts: check whether the nodes are fit for a run; prints a table, problems and remedies
	@$(VENV) -m launch.cluster_check $(NODE_OPTIONS) "$(CONFIG)" $(ARGS)

data: setup ## NAME=openclipart (or emoji, fashion-mnist): fetch, verify and pack pictures to train on; run it again to continue
	@$(VENV) -m pipeline.collections $(or $(NAME),fashion-mnist) $(ARGS)

# Read from the environment, so that blanks and patterns reach the program unchanged.
convert: given-SRC given-OUT given-FORMAT setup ## SRC=images OUT=x.beton FORMAT=beton (or wds, tfrecord, recordio, index): pack images of any source; run it again to continue
	@$(VENV) -m pipeline.convert "$$SRC" "$$OUT" --format "$$FORMAT" $(if $(WORKERS),--workers "$$WORKERS") \
	  $(if $(RAY),--ray "$$RAY") $(ARGS)

given-%:
	$(if $($*),,$(error $*= is missing; e.g. make convert SRC=/my/images OUT=train.beton FORMAT=beton (or wds, tfrecord, recordio, index)))

preview: setup ## draw images and their crops into preview.png
	@$(VENV) -m pipeline.preview "$(CONFIG)" $(ARGS)

stats: setup ## DATA=/my/images: mean and standard deviation of every channel, which crops.mean=auto takes; CHANNELS=4
	@$(VENV) -m pipeline.stats "$(or $(DATA),$(error DATA= is missing; e.g. make stats DATA=/my/images))" \
	  $(if $(CHANNELS),--channels $(CHANNELS)) $(if $(WORKERS),--workers "$(WORKERS)") $(ARGS)

export: setup ## CKPT=runs/demo OUT=x.pth FORMAT=torchvision (or timm, transformers, swav, safetensors, onnx, torchscript, pt2, detectron2): write trained weights
	@$(VENV) -m export "$(CKPT)" "$(OUT)" --format "$(FORMAT)" $(ARGS)

bench: setup ## measure how many images per second each loader gives on this machine
	@$(VENV) -m perf.loader $(ARGS)

profile: setup ## measure what limits training here and what other settings would give: perf/report.html; BUDGET=300 DATA=/my/images CONFIG=
	@$(VENV) -m perf.profile $(if $(BUDGET),--budget $(BUDGET)) $(if $(DATA),--data "$(DATA)") \
	  $(if $(filter-out default,$(filter-out file,$(origin CONFIG))),--config "$(CONFIG)") $(ARGS)

science: setup ## STUDY=emoji (or openclipart, fashion-mnist): compare methods at equal time: docs/science.md; MINUTES=45; run it again to continue
	@$(VENV) -m perf.science $(if $(STUDY),--study $(STUDY)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

zero-check: setup ## check that every ZeRO stage takes the steps of stage 0: perf/results/zero_check.json
	@$(VENV) -m perf.zero_check $(ARGS)

kill-check: setup ## KILLS=200: kill runs at random and compare their weights with an unbroken run: perf/results/kill_check.json
	@$(VENV) -m perf.kill_check $(if $(KILLS),--kills $(KILLS)) $(ARGS)

faults: setup ## MINUTES=60: break the programs on purpose, a fault a row: docs/faults.md; run it again to continue
	@$(VENV) -m perf.faults $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

fuzz: setup ## MINUTES=10: read damaged inputs of every kind: perf/results/fuzz.json
	@$(VENV) tests/fuzz.py $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

long-run: setup ## MINUTES=30: train many steps with each backend, and look for leaks: perf/results/long_run.json
	@$(VENV) -m perf.faults.long_run $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

gpu-check: setup ## check and time everything that needs a GPU, and say what to change: docs/gpu.md; ARGS=--explain needs none
	@$(VENV) -m perf.gpu_check $(ARGS)

sync: setup ## HOSTFILE=hosts: copy this checkout with its .venv to every node by rsync; DATA=/my/images: copy images too
	@$(VENV) -m launch.sync "$(or $(HOSTFILE),$(error HOSTFILE= is missing; e.g. make sync HOSTFILE=hosts))" \
	  $(if $(SSH),--ssh "$(SSH)") $(if $(DATA),--data "$(DATA)")

wheels: setup ## collect the packages of the lock file as wheels in wheels/, for launch/Dockerfile and machines without a network
	@. launch/opencv/use.sh && $(VENV) -m launch.wheels $(LOCK) wheels

test: setup ## run all tests that this machine can run
	@tests/tools.sh
	@$(VENV) -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations=25

test-fast: setup ## run the tests that are not marked slow, in three minutes
	@$(VENV) -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

mutation-check: setup ## how many small changes of five modules do the fast tests notice? (needs cosmic-ray) docs/testing.md
	@$(VENV) tests/mutation_check.py $(ARGS)

lint: setup ## run ruff and mypy
	@$(VENV) -m ruff check . && $(VENV) -m ruff format --check . && $(VENV) -m mypy

default-yaml: setup ## write config/default.yaml and docs/settings.md from config/schema
	@$(VENV) -m config.schema --write

lock: setup ## resolve the lock files again from pyproject.toml
	. launch/opencv/use.sh; for dali in cuda120 cuda130; do $(VENV) -m uv pip compile -q pyproject.toml --extra dev --extra export --extra ray --extra hdf5 --extra s3 --extra dali-$$dali --universal \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate -o requirements-$$dali.lock; done
	echo uv | $(VENV) -m uv pip compile -q - --universal --generate-hashes --no-header --no-annotate -o requirements-uv.lock

clean: ## remove .venv and caches; data/ and runs/ stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
