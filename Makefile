# make book | test | lint | bench | serve | publish | clean. The first of them makes .venv and installs; later ones reuse it.
PYTHON  ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
             $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PROFILE ?= zoo
PORT    ?= 8000
DEVICE  ?= cpu
SUITES  ?=
COVERAGE ?=
LONG     ?=
VENV    := .venv
BIN     := $(VENV)/bin
# The stamp's name holds a checksum of what was installed, so only a change of requirements installs again.
STAMP   := $(VENV)/.installed-$(shell cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)

# One thread per process: the book runs several processes, and two threads each only get in each other's way.
export OMP_NUM_THREADS ?= 1

.PHONY: help book test bench lint serve publish clean
help:
	@echo "make book    install, run the notebooks, build the book      (PROFILE=smoke|zoo|pretrained|paper)"
	@echo "make test    install, run the tests                         (COVERAGE=1: which lines none of them reaches; LONG=1: the long tables too)"
	@echo "make lint    ruff, its formatter, the type checker"
	@echo "make bench   measure speed, write benchmarks/results/     (DEVICE=cpu|cuda, SUITES='throughput search ...')"
	@echo "make serve   show the built book at http://localhost:$(PORT)"
	@echo "make publish copy the finished runs of PROFILE=pretrained into results/"
	@echo "make clean   remove built pages and executed notebooks; finished runs stay in runs/"

book: $(STAMP)
	$(BIN)/phantom book --profile $(PROFILE)

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal $(if $(LONG),,-m "not long") $(if $(COVERAGE),--cov=phantomlib --cov=phantombook --cov-report=term-missing:skip-covered)

bench: $(STAMP)
	MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=8589934592 $(BIN)/python -m benchmarks --device $(DEVICE) $(SUITES:%=--only %)

lint: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files

serve: $(STAMP)
	@test -f _build/html/index.html || { echo "No book yet: run 'make book' first."; exit 1; }
	@echo "Open http://localhost:$(PORT) (Ctrl-C stops)"
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

publish: $(STAMP)
	$(BIN)/python -m phantombook.published_runs runs/pretrained results

clean:
	rm -rf _build book/generated

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found. Install it, or run: make book PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python
	@echo "Installing the pinned packages into $(VENV) (minutes, the first time) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@rm -f $(VENV)/.installed-*
	@touch $@
