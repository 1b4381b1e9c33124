# The only spelling of each routine. Needs git, make and Python >= 3.11; everything else goes into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first interpreter that is new enough; `make PYTHON=... demo` overrides.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# The whole reference where it lies beside the checkout, else the part of it in the repository.
CASES  ?= $(firstword $(wildcard ../shared/reference) tests/golden)
PROMPT ?= a panda on a blue background
OUT    ?= out
# Processes of `make test`: three keep two cores busy, since tests of launchers, servers and clusters mostly wait.
JOBS   ?= 3
# Processes that compute with as many threads as there are cores spin while they wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: help demo test test-all lint conformance bench docs site official dist clean

help:
	@echo "make demo          a first video: $(OUT)/demo.mp4 and $(OUT)/demo.png"
	@echo "make test          the test suite without its slow extras, in JOBS=$(JOBS) processes"
	@echo "make test-all      all of it"
	@echo "make lint          ruff, and mypy in its strict mode"
	@echo "make conformance   compare with the official numbers in CASES=$(CASES)"
	@echo "make bench         measure each stage of a generation"
	@echo "make docs          write docs/reference again, and the words and examples of comfyui/"
	@echo "make site          the documentation as a website in build/site; fails on a dead link"
	@echo "make official      write official/kandinsky-5/configs and the page of the documents' command lines again"
	@echo "make dist          a wheel and an sdist in dist/"
	@echo "make clean         remove $(VENV) and $(OUT)"

# Every install reads constraints.txt, so that torch is pinned before any open range is looked at. The stamps make a
# second run install nothing; they are older than the two files only after one of them was edited.
$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed: install it or say make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@mkdir -p $(OUT)
	@$(BIN)/kandinsky generate "$(PROMPT)" -m nano2-t2v --seed 7 -o $(OUT)/demo.mp4 --sheet $(OUT)/demo.png

# The website only reads the sources, so it needs no torch.
$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --constraint constraints.txt 'mkdocs-material' 'mkdocstrings[python]'
	touch $@

# One thread each: processes that compute with as many threads as there are cores take turns instead of sharing them.
test: $(VENV)/.installed-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m "not slow"

test-all: $(VENV)/.installed-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

conformance: $(VENV)/.installed-dev
	$(BIN)/kandinsky conformance $(CASES)

# The U-Net of Kandinsky 3 and Kandinsky Video beside Diffusers', at two sizes; --set LIST is of that network.
UNET_TINY := dim_mult=1,1,2,2 model_channels=32 init_channels=16 time_embed_dim=64 context_dim=64 groups=8 head_dim=16
UNET_MID  := model_channels=64 init_channels=32 time_embed_dim=256 context_dim=256 groups=16 head_dim=32
unet_bench = OMP_NUM_THREADS=1 $(BIN)/kandinsky bench kandinsky3.0 --random-weights --against diffusers --stages dit,vae \
	$(addprefix --set dit.,$(1)) --set vae.ch=32 --size 256x256 --steps 2

bench: $(VENV)/.installed-dev
	$(BIN)/kandinsky bench
	$(call unet_bench,$(UNET_TINY))
	$(call unet_bench,$(UNET_MID))

docs: $(VENV)/.installed
	$(BIN)/python -m kandinsky.cli.reference docs/reference/cli.md
	$(BIN)/python -m kandinsky.bench.page docs/benchmarks
	$(BIN)/python tests/comfy_pack/render.py

site: $(VENV)/.installed-docs
	$(BIN)/python docs/site.py

official: $(VENV)/.installed-dev
	$(BIN)/python -m kandinsky.compat.official_files official/kandinsky-5/configs
	OMP_NUM_THREADS=1 $(BIN)/python tests/official/snippets_page.py docs/reference/official-snippets.md

# Built from a copy of what git tracks, so that nothing else of this folder gets in.
dist: $(VENV)/.installed-dev
	rm -rf build/dist dist && mkdir -p build/dist dist
	git archive HEAD | tar -x -C build/dist
	$(BIN)/python -m build --outdir dist build/dist
	rm -rf build/dist

clean:
	rm -rf $(VENV) $(OUT)
