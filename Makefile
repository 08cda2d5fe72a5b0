# make demo   the whole job on the embedded model and text   (QUICK=1: in a few minutes)
# make test   every check: ruff, mypy, import-linter, pytest  (PYTEST="-m slow": the slow ones)
# make bench  every benchmark, quick form
# Both set up .venv first. Nothing outside this folder is written but pip's cache.

VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DEPTHCUT_CACHE := $(CURDIR)/.cache/depthcut
export HF_HOME := $(CURDIR)/.cache/huggingface
export TMPDIR := $(CURDIR)/.cache/tmp

# Without an NVIDIA GPU, the CPU build of torch: a tenth of the download.
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
TORCH_INDEX := --extra-index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: demo test bench setup clean
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	mkdir -p $(TMPDIR)
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint constraints.txt $(TORCH_INDEX) --no-deps torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,heal]' --group dev
	touch $@

demo: setup
	$(BIN)/depthcut demo --out demo $(if $(QUICK),--quick)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest $(PYTEST)

bench: setup
	$(BIN)/python benchmarks/startup.py --quick
	$(BIN)/python benchmarks/survey.py --quick
	$(BIN)/python benchmarks/slice.py --quick

clean:
	rm -rf $(VENV) .cache demo
