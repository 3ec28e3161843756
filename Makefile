# `make generate`: everything from a fresh clone to pictures. `make test`: everything to a test report.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup generate chain chain-full chain-variants photographs chromium test test-rest test-all lint format clean

setup: $(VENV)/.ready

# pip unpacks here what it installs: /tmp is too small for 6 GB on many machines, and its growth can be shown.
PIP_TMPDIR := $(abspath $(VENV))/tmp
# A line with the size of $(VENV), every so many seconds until the shell of the recipe ends. pip itself prints its errors
# only, because its notes and warnings about many package indexes fill the screen.
ALIVE_SECONDS := 20
ALIVE = { seconds=0; while sleep 1; do seconds=$$((seconds + 1)); if [ $$((seconds % $(ALIVE_SECONDS))) = 0 ]; then \
    echo "  $$seconds s: $$(du -sm $(VENV) 2>/dev/null | cut -f1) MB"; fi; done; } & alive=$$!; \
    trap 'kill $$alive 2>/dev/null' EXIT; trap 'exit 130' INT TERM

# pip only: the exact versions of constraints.txt, and this folder as an editable install.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else \
	  f"Python {sys.version.split()[0]} is not supported: take 3.11 to 3.13, e.g. make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned stack into $(VENV) (about 6 GB; once)"
	@$(ALIVE); mkdir -p $(PIP_TMPDIR) && TMPDIR=$(PIP_TMPDIR) \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -rf $(PIP_TMPDIR) && touch $@ && echo "installed into $(VENV)"

generate: setup  ## 24 people x 16 variants with the built-in demo network
	$(BIN)/python jobs/generate.py --people 24 --variants 16 --unit-images 64 --out $(abspath $(or $(OUT),out/demo))

# Does augmentation help? Whole chains on drawn people, from the crowd to a page with the answer. The generator knows the
# identity labels of the 60 labelled people only, and has seen none of those who are tested with. Each step goes on where
# it stopped. A larger one on GPUs, for example:
# make chain-full OUT=/data/chain FULL_SEEDS="0 1 2 3 4 5 6 7 8 9" STEPS=5000 GPU_SHARE=0.125
SEEDS ?= 0 1 2
FULL_SEEDS ?= 0 1 2 3 4
CHAIN = $(or $(OUT),out/$@)
PAIRS = passersby/demo/toy_crowd_pairs.safetensors
MIXED = passersby/demo/toy_crowd.safetensors
GPUS = $(if $(GPU_SHARE),--gpus-per-trial $(GPU_SHARE))
SWEEP = $(BIN)/python jobs/sweep.py --data $(CHAIN)/crowd $(GPUS)
SCARCE = $(SWEEP) --preset scarce-small --sweep artificial-people --generated $(CHAIN)/people --steps $(or $(STEPS),1000)
CROWD = $(BIN)/python jobs/make_toy_crowd.py --train-people 840 --test-people 200 --images-per-camera 5 --out $(CHAIN)/crowd
PEOPLE = $(BIN)/python jobs/generate.py --network $(PAIRS) --people 640 --variants 24 --truncation-psi 0.85 --out $(CHAIN)/people

# A study (docs/study.md) with a generator that exists and the usual thresholds. The judge learns the same 60 people.
chain: setup  ## 60 labelled people alone, with artificial people, real people, unlabelled pictures: an hour on two cores
	$(CROWD)
	$(BIN)/python jobs/study.py --data $(CHAIN)/crowd --network $(PAIRS) --labelled-people 60 --thresholds usual \
	    --people 400 --variants 24 --truncation-psi 0.85 --levels $(or $(LEVELS),160) --seeds $(SEEDS) \
	    --steps $(or $(STEPS),1000) $(GPUS) --anyway --out $(CHAIN)

# Recipes are chosen on people set aside from training.
chain-full: setup  ## the same with chosen recipes and five seeds, then 200 labelled people: many hours on two cores
	$(CROWD)
	$(PEOPLE)
	$(SCARCE) --set labelled_people=60 --arms C G U S --choose plain changes changes-first changes-apart \
	    --levels $(or $(LEVELS),160) --seeds $(FULL_SEEDS) --out $(CHAIN)/sweep-60
	$(BIN)/python jobs/report.py --sweep $(CHAIN)/sweep-60
	$(SCARCE) --set labelled_people=200 --arms C G --choose plain changes changes-first changes-apart \
	    --levels 320 --seeds 0 1 2 --out $(CHAIN)/sweep-200
	$(BIN)/python jobs/report.py --sweep $(CHAIN)/sweep-200

# The study's way with such pictures, and others: filtered by identity, softly labelled, few in a batch, none at the end.
chain-variants: setup  ## new pictures of real people, three ways: hours on two cores, most for the encoder
	$(BIN)/python jobs/make_toy_crowd.py --out $(CHAIN)/crowd
	$(BIN)/python jobs/train_reid.py --preset strong-small --data $(CHAIN)/crowd --out $(CHAIN)/identity
	$(BIN)/python jobs/train_encoder.py --preset tiny --data $(CHAIN)/crowd --network $(MIXED) --generated-share 0.25 \
	    --steps 1500 --validation-steps 150 --identity-network $(CHAIN)/identity/network.safetensors --out $(CHAIN)/encoder
	$(BIN)/python jobs/invert.py --data $(CHAIN)/crowd --network $(MIXED) --encoder $(CHAIN)/encoder/encoder.safetensors --pictures 1 \
	    --refine w --refine-steps 40 --identity $(CHAIN)/identity/network.safetensors --out $(CHAIN)/latents
	$(BIN)/python jobs/generate.py --latents $(CHAIN)/latents --network $(MIXED) --variants 20 --out $(CHAIN)/variants \
	    --identity $(CHAIN)/identity/network.safetensors --real $(CHAIN)/crowd
	$(SWEEP) --out $(CHAIN)/sweep --seeds $(SEEDS) --preset strong-small --set sampler=shuffle triplet_weight=0 \
	    --sweep variants-of-real-people --generated $(CHAIN)/variants --latents $(CHAIN)/latents \
	    --levels $(or $(LEVELS),16) --steps $(or $(STEPS),600) --arms "study: variants_labels=hard generated_share=None" \
	    "gated: variants_labels=smooth generated_share=0.25 real_only_epochs=2 identity_margin=0" \
	    "gentle: variants_labels=smooth generated_share=0.1 generated_weight=0.5 real_only_epochs=4 identity_margin=0"
	$(BIN)/python jobs/report.py --sweep $(CHAIN)/sweep

# Photographs (docs/market1501.md): 50, 100, 200 and all people labelled, from random weights and from published ones. A
# generator each, which knows the labels of these people only; three levels, five seeds. For a GPU, for example:
# make photographs MARKET=/data/market1501 OSNET=/data/osnet_x0_25_msmt17.pth OUT=/data/photographs GPU_SHARE=0.25
PHOTOGRAPHS = $(or $(OUT),out/photographs)/$*
OSNET_START = backbone=osnet_x0_25 height=128 width=64 pad=5
photographs: photographs-50 photographs-100 photographs-200 photographs-all  ## the answer on photographs: a night on a GPU
photographs-%: setup
	@test -d "$(MARKET)" || { echo "give MARKET=FOLDER, an unpacked Market-1501"; exit 2; }
	@test -f "$(OSNET)" || { echo "give OSNET=FILE, torchreid's osnet_x0_25_msmt17.pth"; exit 2; }
	$(BIN)/python jobs/study.py --data $(MARKET) $(if $(filter all,$*),,--labelled-people $*) --preset gpu --identity-loss yes \
	    --generator-set projected=True intraclass_weight=100 --levels 80 160 320 --seeds $(FULL_SEEDS) \
	    --set $(OSNET_START) pretrained=False lr=0.001 $(GPUS) --anyway --out $(PHOTOGRAPHS)
	$(BIN)/python jobs/sweep.py --data $(MARKET) --preset scarce --sweep artificial-people --generated $(PHOTOGRAPHS)/people \
	    --steps $(or $(STEPS),2000) --set $(OSNET_START) weights=$(OSNET) lr=0.003 recipe=plain \
	    $(if $(filter all,$*),,labelled_people=$*) --arms $(if $(filter all,$*),C G,C G U S) --levels 80 160 320 --seeds $(FULL_SEEDS) \
	    --networks $(PHOTOGRAPHS)/judge/network.safetensors $(GPUS) --out $(PHOTOGRAPHS)/sweep-osnet
	$(BIN)/python jobs/report.py --sweep $(PHOTOGRAPHS)/sweep-osnet

# For the tests of the pages that jobs write, which are looked at in a real browser. Needs root, and Debian or Ubuntu.
chromium:
	command -v chromium >/dev/null || (apt-get update && apt-get install -y --no-install-recommends chromium)

# What `make test` leaves out: what takes long, and what kills drivers, workers and nodes.
QUICK := not slow and not crash
# A test process a core, up to four, each with its own Ray; a file's tests stay together. One process: make test ARGS="-n 0".
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup  ## the quick tests, the main job on Ray among them: minutes
	$(PYTEST) -m '$(QUICK)' $(ARGS)

test-rest: setup  ## what `make test` leaves out; pages are looked at only where there is a browser (make chromium)
	$(PYTEST) -m 'not ($(QUICK))' $(ARGS)

test-all: setup  ## every test
	$(PYTEST) $(ARGS)

lint: setup  ## style and format (ruff), the direction of imports (import-linter), types (pyright)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out
