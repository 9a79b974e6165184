# akin: set-up, and every stage by name. `make` lists them.
#
#   GPU=1       serve on a CUDA GPU (GPU=0 goes back; left out, .venv stays as it is)
#   PYTHON=...  the interpreter to build the environments on (otherwise the newest of 3.11 to 3.14)
#   ARGS=...    more arguments for the stage; .venv/bin/akin VERB --help lists them

PORT ?= 8080
IMAGES ?=
PRESET ?= cpu
MINUTES ?=
DATA ?=
NAME ?=
RUNTIME ?= onnx
WORKERS ?=
TOKEN_AUTH ?=
URL ?=
FRONT ?=
SLO_MS ?=
USERS ?=
SECONDS ?=
INDEX ?=
RAM ?=
TOKEN_FILE ?=
THUMBNAILS ?=
PROCESSES ?=
PROVIDER ?=
GRPC_PORT ?=
STORE ?=
ARGS ?=
PYTHON ?=
GPU ?= $(if $(wildcard .venv/installed-serve-gpu),1,0)

# .venv serves; .venv-full has torch on top, and trains, exports and tests. A stamp is written when its
# environment is whole, and carries the lock's name: changing GPU= asks for another stamp.
serving_lock := serve$(if $(filter 1,$(GPU)),-gpu)
serving := .venv/installed-$(serving_lock)
full := .venv-full/installed-full
# An unquoted ~ reaches us from shells that expand it only at the start of a word.
images := $(patsubst ~/%,$(HOME)/%,$(IMAGES))
option = $(if $($(1)),--$(2) "$($(1))")
# Several sources of images may be named, so their paths may hold no spaces: DATA="data data/unlabeled.npy".
sources = $(if $(DATA),--data $(DATA))

.DEFAULT_GOAL := help
.PHONY: help setup setup-full setup-milvus setup-openvino serve deploy index train speedrun ablate evaluate export torchserve bench bench-training bench-sizes bench-index soak profile load-test test test-long test-page lint clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(serving) ## what serving needs, into .venv (GPU=1 for CUDA)
setup-full: $(full) ## what training, export and tests need, into .venv-full (6 GB)

setup-milvus: $(serving) ## what INDEX=milvus://host:19530 needs on top, into .venv
	@.venv/bin/python -m pip install --quiet -r requirements/milvus.txt || \
		uv pip install --quiet --python .venv/bin/python -r requirements/milvus.txt

setup-openvino: $(serving) ## what PROVIDER=OpenVINO needs on top, into .venv
	@.venv/bin/python -m pip install --quiet --no-deps -r requirements/openvino.txt || \
		uv pip install --quiet --no-deps --python .venv/bin/python -r requirements/openvino.txt

$(serving): requirements/$(serving_lock).txt
	@PYTHON="$(PYTHON)" sh requirements/install.sh .venv $<
$(full): requirements/full.txt
	@PYTHON="$(PYTHON)" sh requirements/install.sh .venv-full $<

serve: $(serving) ## answer over HTTP: PORT=8080 IMAGES=folder PROCESSES=4 GPU=1 INDEX=milvus://host:19530 RAM=2GB TOKEN_FILE=file
	@exec .venv/bin/akin serve --port $(PORT) $(if $(images),--images "$(images)") $(call option,INDEX,index) \
		$(call option,RAM,ram) $(call option,TOKEN_FILE,token-file) $(call option,PROCESSES,processes) \
		$(call option,PROVIDER,require-provider) $(call option,GRPC_PORT,grpc-port) \
		$(if $(filter 1,$(THUMBNAILS)),--thumbnails) $(ARGS)

deploy: $(serving) ## let the running server answer with another model, dropping nothing: STORE=folder PORT=8080
	@exec .venv/bin/akin deploy "$(or $(STORE),$(error make deploy needs STORE=, the folder of a model))" --port $(PORT) $(ARGS)

index: $(serving) ## add a folder's new images to the gallery, also while it is served: IMAGES=folder
	@exec .venv/bin/akin index add "$(or $(images),$(error make index needs IMAGES=folder))" $(ARGS)

train: $(full) ## pretrain without labels: PRESET=cpu MINUTES=60 DATA="folder more.zip"
	@exec .venv-full/bin/akin pretrain \
		$(call option,PRESET,preset) $(call option,MINUTES,minutes) $(sources) $(ARGS)

speedrun: $(full) ## eight minutes of training and one honest line: DATA=folder
	@exec .venv-full/bin/akin speedrun $(sources) $(call option,MINUTES,minutes) $(ARGS)

ablate: $(full) ## what one knob changes: NAME=temperature|optimizer|augmentation|batch|head MINUTES=2 DATA=folder
	@exec .venv-full/bin/akin ablate "$(or $(NAME),$(error make ablate needs NAME=, such as temperature))" \
		$(call option,MINUTES,minutes) $(sources) $(ARGS)

evaluate: $(full) ## linear probe and nearest neighbours of the trained encoder: DATA=folder
	@exec .venv-full/bin/akin evaluate $(call option,DATA,data) $(ARGS)

export: $(full) ## the trained encoder into model_store: ONNX, int8, manifest, cards
	@exec .venv-full/bin/akin export $(ARGS)

# torch's own int8, made from the shipped encoder.
var/torch/encoder.json: model_store/encoder.json $(full)
	@.venv-full/bin/akin export --runtime torch

torchserve: $(full) $(if $(filter torch,$(RUNTIME)),var/torch/encoder.json) ## answer with TorchServe: PORT=8080 RUNTIME=onnx|torch WORKERS=2 TOKEN_AUTH=1
	@$(if $(filter-out onnx torch,$(RUNTIME)),$(error RUNTIME=$(RUNTIME) is not there; there are onnx and torch))
	@.venv-full/bin/akin archive $(if $(filter torch,$(RUNTIME)),--model-store var/torch)
	@exec .venv-full/bin/akin torchserve --port $(PORT) $(call option,WORKERS,workers) \
		$(if $(filter 1,$(TOKEN_AUTH)),--token-auth) $(ARGS)

bench-training: $(full) ## measure a training step against the bare network: PRESET=cpu DATA=folder
	@exec .venv-full/bin/python -m load_tests.bench_training $(call option,PRESET,preset) $(sources) $(ARGS)

bench-sizes: $(full) ## accuracy against int8 latency, by image size: DATA=folder with STL-10
	@exec .venv-full/bin/python -m load_tests.bench_sizes $(call option,DATA,data) $(ARGS)

bench-index: $(full) ## the index at a million rows beside FAISS, usearch and hnswlib: DATA=folder
	@exec .venv-full/bin/python -m load_tests.bench_index $(call option,DATA,data) $(ARGS)

bench: $(serving) $(full) ## measure the fronts against their in-process floor
	@exec .venv-full/bin/python -m load_tests.bench $(if $(images),--images "$(images)") $(ARGS)

soak: $(serving) $(full) ## 200,000 mixed requests: memory must stay flat
	@exec .venv-full/bin/python -m load_tests.soak $(ARGS)

profile: $(serving) $(full) ## where each tenth of a millisecond of a request goes
	@exec .venv-full/bin/python -m load_tests.profile_request $(ARGS)

load-test: $(if $(URL),,$(serving)) $(full) ## hold p50 under load to SLO_MS=20: FRONT=native USERS=4 SECONDS=30 or URL=
	@exec .venv-full/bin/python -m load_tests.slo $(call option,URL,url) \
		$(if $(FRONT),--front $(FRONT)$(if $(filter torchservetorch,$(FRONT)$(RUNTIME)),-torch)) \
		$(call option,SLO_MS,slo-ms) $(call option,USERS,users) $(call option,SECONDS,seconds) \
		$(if $(images),--images "$(images)") $(ARGS)

test: $(serving) lint ## lint, types and the tests, in under ten minutes
	.venv-full/bin/python -m pytest $(ARGS)

test-long: $(serving) lint ## the same, and the tests that take minutes each
	.venv-full/bin/python -m pytest -m "not page" $(ARGS)

test-page: $(serving) $(full) ## the page, in headless Chromium (apt-get install chromium); screenshots into var/page
	.venv-full/bin/python -m pytest -m page tests/page $(ARGS)

lint: $(full) ## ruff and mypy
	.venv-full/bin/python -m ruff check .
	.venv-full/bin/python -m mypy

clean: ## remove caches (keeps environments, runs/ and the gallery in var/)
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache

distclean: clean ## remove the environments too
	rm -rf .venv .venv-full
