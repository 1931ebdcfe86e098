# Everything runs in .venv, made from the locked requirements; a second call finds it ready.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCE ?=
PORT ?= 8000
JOBS ?= 2

.PHONY: demo test check lint format bench dist smoke audit torture clean

# The drawn demo catalog, or your own photos: make demo SOURCE=/my/photos
demo: $(VENV)/.base
ifeq ($(SOURCE),)
	$(BIN)/lookalike demo --port $(PORT)
else
	$(BIN)/lookalike serve $(SOURCE) --port $(PORT)
endif

# A process for each core, a file of tests for each process; more threads than that would wait for one another.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: lint
	$(BIN)/mypy

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks torture
	$(BIN)/ruff format --check src tests benchmarks torture

format: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests benchmarks torture
	$(BIN)/ruff format src tests benchmarks torture

# Speed beside bare numpy and onnxruntime: make bench CATALOG=shop.catalog
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/search.py $(CATALOG)

# Wheel, sdist, what is locked as a CycloneDX SBOM, and the digests of all three; the same sources give the same bytes.
dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python -W ignore -m cyclonedx_py requirements requirements.txt --pyproject pyproject.toml \
		--output-reproducible -o dist/lookalike.cdx.json
	cd dist && (sha256sum *.whl *.tar.gz *.json || shasum -a 256 *.whl *.tar.gz *.json) >SHA256SUMS && cat SHA256SUMS

# The wheel in a fresh environment of each Python that is here: make smoke PYTHONS="python3.10 python3.13"
PYTHONS ?=
smoke: dist
	scripts/pythons $(PYTHONS)

# Exit code 1: known vulnerabilities; 2: the database could not be asked.
audit: $(VENV)/.dev
	$(BIN)/python scripts/audit

# Everything that may go wrong, in earnest: kills, power cuts and full disks; broken files; a server under attack. About an
# hour on two cores; each prints how to repeat a case that broke, and the others go on. Exit code 2 of one: a case could not be
# tried here (without root no small disk can be mounted). Real photos from LOOKALIKE_DATA, drawn ones without it.
torture: $(VENV)/.dev
	@code=0; for program in durability fuzz server; do \
		echo "torture/$$program.py"; $(BIN)/python torture/$$program.py || code=$$?; done; exit $$code

clean:
	rm -rf $(VENV) dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: requirements.txt pyproject.toml | $(VENV)/bin/python
	@test -f $(VENV)/.dev || $(BIN)/python -m pip install --quiet --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

# torch by name, before what depends on it: its builds differ by platform, so it has no hash to lock.
$(VENV)/.dev: requirements-dev.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-deps torch==2.13.0
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@ $(VENV)/.base
