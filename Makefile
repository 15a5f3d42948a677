# Every target sets up .venv by itself, from the versions in constraints.txt. Another interpreter:
#     make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
# `make test ISA=avx2` computes as a processor without AVX-512 does, `ISA=default` as one without AVX; each library has
# a name of its own for that. `make test THREADS=2` sums in two threads.
THREADS ?= 1
ISAS := avx2 default
LIBRARIES_avx2 := MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell
LIBRARIES_default := MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem
MACHINE := TEST_THREADS=$(THREADS) $(if $(ISA),ATEN_CPU_CAPABILITY=$(ISA) $(LIBRARIES_$(ISA)))
$(if $(ISA),$(if $(filter $(ISA),$(ISAS)),,$(error ISA=$(ISA) is not one of: $(ISAS))))

# uv leaves it to the first import to compile a module; where that is forbidden to keep it, each process does so again.
unexport PYTHONDONTWRITEBYTECODE

# Touched when an installation has finished; an interrupted one is done again.
STAMP := .venv/.installed
# The same with the lowest releases that pyproject.toml admits.
OLDEST := .venv-oldest/.installed
# Files that begin with an underscore are shared by the others.
BENCHMARKS := $(filter-out _%,$(patsubst benchmarks/%.py,%,$(wildcard benchmarks/*.py)))

.DEFAULT_GOAL := help
.PHONY: help demo test coverage test-oldest lint docs bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "make bench-NAME runs one of: $(BENCHMARKS)"

demo: $(STAMP)  ## diagnose the shipped scenes with the reference model; pages in demo/
	$(BIN)/lvlm-interp demo --out demo --force

test: lint  ## lint, then all tests; as another machine sums: ISA=avx2, ISA=default, THREADS=2
	$(MACHINE) $(BIN)/python -m pytest -n 2 --dist worksteal

# Apart, since counting lines doubles the time.
coverage: lint  ## the same, and which lines no test runs; fails under 90 %
	$(MACHINE) $(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

test-oldest: $(OLDEST)  ## all tests with the lowest releases that are supported, in .venv-oldest
	$(MACHINE) .venv-oldest/bin/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lvlm_interp

# The variable silences a notice of the theme's authors that has nothing to do with our pages.
docs: $(STAMP)  ## build the documentation; pages in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(BENCHMARKS:%=bench-%)  ## run every benchmark

bench-%: benchmarks/%.py $(STAMP)
	$(BIN)/python $<

clean:  ## remove everything that make made, its environments included
	rm -rf .venv .venv-oldest demo site build dist htmlcov .coverage .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): constraints.txt
$(STAMP): EXTRAS := dev,docs,families
$(OLDEST): constraints-oldest.txt
$(OLDEST): EXTRAS := dev,docs
$(STAMP) $(OLDEST): PACKAGES = --constraint $(filter constraints%,$^) --editable '.[$(EXTRAS)]'
$(STAMP) $(OLDEST): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "lvlm_interp needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1)"; \
	    echo "Name another interpreter with: make PYTHON=/path/to/python3.11 ..."; \
	    exit 1; }
	@rm -f $@
	@echo "Installing into $(@D) (once; takes one or two minutes)"
	$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --constraint $(filter constraints%,$^) uv && \
	$(@D)/bin/uv pip install --python $(@D)/bin/python $(PACKAGES) || { \
	    echo "uv could not install these (it knows nothing of pip's settings); pip does it, which takes longer"; \
	    $(@D)/bin/python -m pip install $(PACKAGES); }
	@touch $@
