# make install  the environment in .venv, which each of the others builds too
# make demo   builds a small corpus of real voices, trains B0 and verifies
# make test   lint, doctests and the tests not marked slow, with their coverage
# make test-all  the slow ones as well, as .ci/run does
# make test-runtimes [RUNTIMES=...]  exported files in the runtimes they are for
#             (tests/runtimes), each with an environment of its own
# make test-versions [OLDEST=python3.10 NEWEST=python3.13]  the quick tests with the
#             lowest and the newest versions that pyproject.toml allows
# make bench  measures speed and memory (tests/benchmarks/README.md)
# make lint   ruff, codespell, yamllint (.pre-commit-config.yaml)
# make docs   the documentation, as a site in build/docs
# make mutants [MODULES=...]   breaks the code on purpose (tests/README.md)
# make fuzz [MINUTES=5 SEED=0 TARGETS=...]   feeds the readers (tests/README.md)

PYTHON ?= python3
BIN := .venv/bin
export PYTHONUNBUFFERED := 1

.PHONY: install demo test test-all test-runtimes test-versions bench lint docs \
    mutants fuzz
install: .venv/complete

demo: .venv/complete
	$(BIN)/python recipes/VoxCeleb/SpeakerRec/demo.py demo

PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=worksteal
# Whole, so that a worker finds it from any folder.
test: export COVERAGE_FILE := $(CURDIR)/.coverage
test: lint
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered

test-all: test
	$(PYTEST) -m slow

RUNTIMES := $(patsubst tests/runtimes/%/requirements.txt,%,\
    $(wildcard tests/runtimes/*/requirements.txt))
test-runtimes: $(RUNTIMES:%=runtime-%)
runtime-%: build/runtimes/%/complete
	build/runtimes/$*/bin/python -m pytest tests/runtimes/$*

# The page's tests also need apt install chromium chromium-driver alsa-utils.
runtime-web: web/node_modules/.package-lock.json
web/node_modules/.package-lock.json: web/package-lock.json
	cd web && npm ci --ignore-scripts
	touch $@

# Kept, though no rule names one. Where packages ask for releases that exclude
# those of others, overrides.txt has the ones to take.
.PRECIOUS: build/runtimes/%/complete
build/runtimes/%/complete: tests/runtimes/%/requirements.txt requirements.txt \
    .venv/complete
	$(BIN)/uv venv --clear build/runtimes/$*
	$(BIN)/uv pip install --python build/runtimes/$* --requirement $< \
	    $(patsubst %,--override %,$(wildcard $(<D)/overrides.txt))
	$(BIN)/uv pip install --python build/runtimes/$* --no-deps --editable .
	touch $@

OLDEST := $(PYTHON)
NEWEST := $(PYTHON)
test-versions: build/lowest-direct/complete build/highest/complete
	build/lowest-direct/bin/python -m pytest -m "not slow" -n 2 --dist=worksteal
	build/highest/bin/python -m pytest -m "not slow" -n 2 --dist=worksteal

build/lowest-direct/complete: RELEASE = $(OLDEST)
build/highest/complete: RELEASE = $(NEWEST)
build/%/complete: .venv/complete
	$(BIN)/uv venv --clear --python $(RELEASE) build/$*
	$(BIN)/uv pip install --python build/$* --resolution $* \
	    --editable '.[onnx,kaldi,parquet,shards,sherpa,diarization,serve,faiss,lhotse,datasets,ray,dev]'
	touch $@

bench: .venv/complete
	$(BIN)/python tests/benchmarks/benchmark.py

docs: .venv/complete
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir build/docs

mutants: .venv/complete
	$(BIN)/python tests/mutants.py $(MODULES)

MINUTES := 5
SEED := 0
fuzz: .venv/complete
	PYTHONPATH=tests:recipes/VoxCeleb OMP_NUM_THREADS=1 \
	    $(BIN)/python -m fuzz $(MINUTES) $(SEED) $(TARGETS)

lint: .venv/complete
	$(BIN)/pre-commit run --all-files

.venv/complete: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv || \
	    { echo "error: on Debian, apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check \
	    -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check \
	    --no-deps --editable .
	touch $@
