# make demo: SIM learns from speech and is looked into: eight minutes, two cores
# make test: everything that is tested
# make bench: speed and memory, in about ten minutes on two cores
# Each sets up .venv with all it needs (a CUDA build of torch: some 5 GB).

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SUDO = $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo test bench lint browser clean

demo: $(VENV)/installed
	$(BIN)/python recipes/table.py hparams/Synthetic/table.yaml
	$(BIN)/python recipes/analyse.py hparams/Synthetic/analyse.yaml

test: $(VENV)/installed lint browser
	$(BIN)/python -m pytest $(PYTEST)

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.bench $(BENCH)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

# the report is tested in Debian's chromium
browser:
	@command -v chromium chromedriver >/dev/null || { $(SUDO) apt-get update \
		&& $(SUDO) apt-get install --yes chromium chromium-driver; }

# torchaudio declares no torch of its own: both are pinned to a pair that fits
$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check \
		torch==2.11.0 torchaudio==2.11.0 --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
