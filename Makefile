# swave. `make help` lists what there is; everything sets itself up first.
CONFIG ?= config/demo.yaml
ARGS   ?=
DALI   ?= cuda120
PYTHON ?= python3
LOCK   := requirements-$(DALI).lock
RUN    := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup help-settings default-yaml train cluster-check data convert preview export bench profile science zero-check kill-check gpu-check sync wheels test lint lock clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  CONFIG=config/demo.yaml   the recipe;  ARGS=\"data.path=/my/images crops.local.count=4\" overrides its settings"
	@echo "  PROCS=2                   processes on this machine (default: one a GPU, 2 on a CPU)"
	@echo "  NODES=4 GPUS=8            train on so many nodes: of HOSTFILE=hosts, else of the SLURM job; DRY=1 only says how"
	@echo "  DALI=cuda120|cuda130      which DALI wheel;  PYTHON=python3.12  which Python"

setup: ## virtual environment .venv from the lock file (done by every other target)
	@launch/setup.sh $(LOCK) $(PYTHON)

help-settings: setup ## every setting: default, range, help, may a run change it? KEY=optimizer: those alone
	@$(RUN) -m config.schema $(KEY)

PLACES = $(if $(NODES),--nodes $(NODES)) $(if $(GPUS)$(PROCS),--processes $(or $(GPUS),$(PROCS))) \
	  $(if $(HOSTFILE),--hostfile $(HOSTFILE)) $(if $(SSH),--ssh "$(SSH)")

train: setup ## train CONFIG (the Fashion-MNIST demo by default); again to resume
	@$(RUN) -m launch.start $(PLACES) $(if $(LAUNCHER),--launcher $(LAUNCHER)) $(if $(DRY),--dry) $(CONFIG) $(ARGS)

cluster-check: setup ## NODES=4 HOSTFILE=hosts: are the nodes fit for a run? a table, and what mends what is wrong
	@$(RUN) -m launch.cluster_check $(PLACES) $(CONFIG) $(ARGS)

data: setup ## fetch, verify and pack Fashion-MNIST (done by train)
	@$(RUN) -m pipeline.fashion_mnist

# From the environment, so that blanks and patterns reach the program as they are.
convert: given-SRC given-OUT given-FORMAT setup ## SRC=images OUT=x.beton FORMAT=beton (or wds, index): pack any source; again to go on
	@$(RUN) -m pipeline.convert "$$SRC" "$$OUT" --format "$$FORMAT" $(if $(WORKERS),--workers "$$WORKERS") \
	  $(if $(RAY),--ray "$$RAY") $(ARGS)

given-%:
	$(if $($*),,$(error $*= is missing; e.g. make convert SRC=/my/images OUT=train.beton FORMAT=beton (or wds, index)))

preview: setup ## a sheet of images with their crops, preview.png
	@$(RUN) -m pipeline.preview $(CONFIG) $(ARGS)

export: setup ## CKPT=runs/demo OUT=x.pth FORMAT=torchvision (or timm, swav, safetensors, onnx, detectron2): trained weights for use
	@$(RUN) -m export "$(CKPT)" "$(OUT)" --format "$(FORMAT)" $(ARGS)

bench: setup ## how many images a second each loader gives on this machine
	@$(RUN) -m perf.loader $(ARGS)

profile: setup ## what bounds training here, and what would each choice give? perf/report.html; BUDGET=300 DATA=/my/images CONFIG=
	@$(RUN) -m perf.profile $(if $(BUDGET),--budget $(BUDGET)) $(if $(DATA),--data "$(DATA)") \
	  $(if $(filter-out default,$(filter-out file,$(origin CONFIG))),--config $(CONFIG)) $(ARGS)

science: setup ## does it learn? each method for the same time, 3 seeds, docs/science.md; MINUTES=45, again to go on
	@$(RUN) -m perf.science $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

zero-check: setup ## does every ZeRO stage take stage 0's steps? perf/results/zero_check.json
	@$(RUN) -m perf.zero_check $(ARGS)

kill-check: setup ## KILLS=200 runs killed at random: the same weights? perf/results/kill_check.json
	@$(RUN) -m perf.kill_check $(if $(KILLS),--kills $(KILLS)) $(ARGS)

gpu-check: setup ## all that needs a GPU: right there, and how fast? perf/results/gpu-DEVICE.json
	@$(RUN) -m perf.gpu_check $(ARGS)

sync: setup ## HOSTFILE=hosts: this folder, .venv and all, to every node by rsync; DATA=/my/images brings those too
	@$(RUN) -m launch.sync $(or $(HOSTFILE),$(error HOSTFILE= is missing; e.g. make sync HOSTFILE=hosts)) \
	  $(if $(SSH),--ssh "$(SSH)") $(if $(DATA),--data "$(DATA)")

wheels: setup ## the lock file's packages as wheels in wheels/, for launch/Dockerfile
	@$(RUN) -m launch.wheels $(LOCK) wheels

test: setup ## all tests that this machine can run
	@tests/tools.sh
	@$(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: setup ## ruff and mypy
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m mypy

default-yaml: setup ## write config/default.yaml and docs/settings.md from config/schema
	@$(RUN) -m config.schema --write

lock: setup ## resolve the lock files anew from pyproject.toml (needs uv)
	for dali in cuda120 cuda130; do uv pip compile -q pyproject.toml --extra dev --extra export --extra ray --extra dali-$$dali --universal \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate -o requirements-$$dali.lock; done

clean: ## remove .venv and caches; data/ and runs/ stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
