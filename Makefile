# make demo    SIM and GIM learn from speech and are analysed: 40 minutes of CPU
# make box     trains sim-small, the model in the package, and writes its numbers
# make check   style, unit tests, doctests, sizes: two minutes
# make test    everything that CI runs: recipes, Hub, browser, processes, docs
# make slow    tests that take longer still
# make bench   speed and memory, in about ten minutes
# make gpu     right, fast, and the paper at full size on a GPU: DATA=FOLDER
# make gpu-bundle   what a GPU without a network needs, into build/gpu.tar
# make docs    the pages, into build/docs
# Times are those of two cores. Each target sets up .venv with all it needs (a
# CUDA build of torch: some 5 GB).

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SUDO = $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo box check test slow bench gpu gpu-bundle docs lint counts chromium clean

demo: $(VENV)/installed
	$(BIN)/python recipes/study.py hparams/Synthetic/study.yaml

box: $(VENV)/installed
	$(BIN)/python recipes/box.py hparams/Synthetic/box.yaml $(BOX)

check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile \
		-m "not (recipe or hub or browser or slow)" $(PYTEST)
	$(BIN)/python docs/house.py counts

test: lint counts docs chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow $(PYTEST)

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.bench $(BENCH)

gpu: $(VENV)/installed
	$(BIN)/python benchmarks/gpu.py --data $(DATA) --minutes 30 $(GPU)

gpu-bundle: $(VENV)/installed
	$(BIN)/python benchmarks/bundle.py --data $(DATA)

# every warning is an error: dead links, arguments that are not in a signature
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

counts: $(VENV)/installed
	$(BIN)/python docs/house.py counts

# the report is tested in Debian's chromium
chromium:
	@command -v chromium chromedriver >/dev/null || { $(SUDO) apt-get update \
		&& $(SUDO) apt-get install --yes chromium chromium-driver; }

# torchaudio declares no torch of its own: both are pinned to a pair that fits
$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check \
		torch==2.11.0 torchaudio==2.11.0 --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build
