# Every target creates the environment first: `make demo` and `make test` need only git,
# make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env demo demo-seeds table1 table2 table-simulated test test-slow test-toolboxes check clean-demo

help: ## show the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

env: $(INSTALLED) ## create the environment in .venv, pinned by constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable ".[all]"
	touch $@

check: env ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# One thread a process, and at most 4 that share the files of tests out: the suite starts ranks
# and workers of its own.
test: check ## the suite, about 16 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: env ## what takes longer: many kills, seeds
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --timeout 3600

TOOLBOXES := .venv-toolboxes

$(TOOLBOXES)/.installed: constraints-toolboxes.txt
	$(PYTHON) -m venv $(TOOLBOXES)
	$(TOOLBOXES)/bin/pip install --disable-pip-version-check \
		--constraint constraints-toolboxes.txt --editable ".[encoder]" \
		pytest pytest-timeout terratorch timm torch torchgeo torchvision
	touch $@

# Apart, because TerraTorch brings a hundred packages, some in versions that others here refuse.
test-toolboxes: $(TOOLBOXES)/.installed ## the encoder in the real torchgeo and TerraTorch
	OMP_NUM_THREADS=1 $(TOOLBOXES)/bin/pytest tests/toolboxes

# The demo: every step says so and returns at once when its result is there already.
DEMO := demo
SEED := 0
RUN = $(DEMO)/run-$(SEED)
GPUS = $(eval GPUS := $(shell $(BIN)/python -c \
	"import torch; print(torch.cuda.device_count())"))$(GPUS)
# The GPUs there are, as far as they divide a global batch of 64; without one, 2 CPU ranks.
RANKS = $(or $(lastword $(foreach n,1 2 4 8,$(shell [ $(n) -le $(GPUS) ] && echo $(n)))),2)
DS_CONFIG = ds_configs/$(if $(filter 0,$(GPUS)),cpu,demo_gpu).json
# 0.6 of the train split's 1,789 samples: at least 1,000 labels.
PROBE = $(BIN)/python train/linear_probe.py --recipe train/recipes/probe.toml --fraction 0.6 \
	--set zero_filled=false \
	--data $(DEMO)/dataset --pretrained $(RUN)/encoder --seed $(SEED)

demo: env ## simulated archive -> shards -> pretraining -> probes -> table and pictures
	$(BIN)/fusmae-ingest simulate bigearthnet --out $(DEMO)/archive --patches 3000 --workers 2
	$(BIN)/fusmae-ingest bigearthnet --s2 $(DEMO)/archive/BigEarthNet-v1.0 \
		--s1 $(DEMO)/archive/BigEarthNet-S1-v1.0 --out $(DEMO)/dataset --workers 2 \
		--samples-per-shard 256 --format shards --format zarr
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" deepspeed --num_accelerators $(RANKS) \
		train/pretrain.py --recipe train/recipes/demo.toml --data $(DEMO)/dataset \
		--out $(RUN) --deepspeed_config $(DS_CONFIG) --resume auto --set seed=$(SEED)
	for features in pretrained random band-statistics; do for sensors in s1 s2 s1,s2; do \
		OMP_NUM_THREADS=2 $(PROBE) --features $$features --sensors $$sensors \
			--out $(DEMO)/probes/seed-$(SEED)/$$features-$$sensors || exit 1; \
	done; done
	$(BIN)/python -m fusmae.evaluation.report $(RUN) --data $(DEMO)/dataset
	$(BIN)/python -m fusmae.evaluation.tables $(DEMO)/probes

demo-seeds: ## the demo with three seeds of weights, masks, order and labels; half an hour
	for seed in 0 1 2; do $(MAKE) --no-print-directory demo SEED=$$seed || exit 1; done

# The paper's tables: `make table1 BEN=ben SEEDS=0,1,2`, with WEIGHTS="--weights dino-mm=FILE ..." for
# the rows of others. LAUNCHER="deepspeed --num_accelerators 2" is for fewer GPUs than there are, which
# is 1, 2, 4 or 8 of them; "deepspeed --hostfile FILE ..." for several machines.
BEN := ben
SEN12MS := sen12ms
SEEDS ?= 0
WEIGHTS :=
LAUNCHER := deepspeed
TABLE1 := results/table1
TABLE = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python train/table.py train/tables/$@.toml \
	--data bigearthnet=$(BEN) --seeds $(SEEDS) --launcher "$(LAUNCHER)"
# An encoder that Table 1 has of each seed; Table 2 pretrains it otherwise.
comma := ,
seed_list = $(subst $(comma), ,$(SEEDS))
found = $(wildcard $(seed_list:%=$(TABLE1)/pretraining/$(1)/seed-%/encoder/config.json))
taken = $(if $(filter $(words $(seed_list)),$(words $(call found,$(1)))),--weights \
	$(1)=$(TABLE1)/pretraining/$(1)/seed-{seed}/encoder)

table1: env ## the paper's Table 1 on BEN=ben, a dataset of fusmae-ingest; resumable
	$(TABLE) --out $(TABLE1) $(WEIGHTS)

table2: env ## the paper's Table 2: transfer to SEN12MS=sen12ms, with Table 1's encoders if there
	$(TABLE) --out results/table2 --data sen12ms=$(SEN12MS) \
		$(call taken,fus-mae-xad) $(call taken,fus-mae-xae-d) $(WEIGHTS)

SIMULATED := results/simulated
# Its micro-batch of 16 and its global batch of 64 leave room for 4 ranks.
SIMULATED_RANKS = $(if $(filter 8,$(RANKS)),4,$(RANKS))

table-simulated: env ## fusion variants, fine-tuning and transfer on simulated archives; about 4 hours on 2 cores, resumable
	$(BIN)/fusmae-ingest simulate bigearthnet --out $(SIMULATED)/archive --patches 16700 --workers 2
	$(BIN)/fusmae-ingest bigearthnet --s2 $(SIMULATED)/archive/BigEarthNet-v1.0 \
		--s1 $(SIMULATED)/archive/BigEarthNet-S1-v1.0 --out $(SIMULATED)/dataset --workers 2
	$(BIN)/fusmae-ingest simulate sen12ms --out $(SIMULATED)/sen12ms-archive --patches 2400 --workers 2
	$(BIN)/fusmae-ingest sen12ms --root $(SIMULATED)/sen12ms-archive --out $(SIMULATED)/sen12ms --workers 2
	for table in simulated simulated_finetune simulated_transfer; do \
		OMP_NUM_THREADS=2 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python train/table.py \
			train/tables/$$table.toml --data bigearthnet=$(SIMULATED)/dataset \
			--data sen12ms=$(SIMULATED)/sen12ms --seeds $(SEEDS) \
			--out $(SIMULATED)/runs --launcher "env OMP_NUM_THREADS=1 deepspeed --num_accelerators $(SIMULATED_RANKS)" || exit 1; \
	done

clean-demo: ## remove what the demo made
	rm -rf $(DEMO)
