# Two commands do all the set-up: `make demo` and `make test`. Both build .venv if it is not there.
PYTHON ?= python3
# A build that is known to work; without a wheel of it for this Python, the newest one is taken.
TORCH ?= torch==2.13.0
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-webui test-forge lint evaluate bench gallery train clean

demo: .venv/installed
	.venv/bin/python -m ditail demo

# In processes of one torch thread each (tests/conftest.py says how many).
test: .venv/installed lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# A real WebUI: SD_WEBUI_DIR is its folder, SD_WEBUI_PYTHON its interpreter.
test-webui: .venv/installed
	$(PIP) webuiapi playwright requests schemathesis
	.venv/bin/python -m pytest tests/webui

# A real Forge: SD_FORGE_DIR is its folder, SD_FORGE_PYTHON its interpreter. The same tests.
test-forge: .venv/installed
	$(PIP) webuiapi playwright requests schemathesis
	.venv/bin/python -m pytest tests/webui

# Resumable; on every core of this machine, by Ray.
evaluate: .venv/installed
	$(PIP) -e .[evaluate]
	.venv/bin/python -m lab evaluate --ray

bench: .venv/installed
	.venv/bin/python -m lab bench

# The images of docs/gallery.md and docs/tuning.md, by the commands that the pages print.
gallery: .venv/installed
	.venv/bin/python -m lab gallery

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	.venv/bin/mypy

# Remakes the demo checkpoints from scratch (under two hours on two cores, needs npm); not needed to use them.
train: .venv/installed
	$(PIP) -e .[train]
	.venv/bin/python -m lab train

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Ditail needs Python 3.10 or newer")'
	$(PYTHON) -m venv .venv
	$(PIP) "$(TORCH)" || $(PIP) torch
	$(PIP) -e .[standalone,test]
	$(PIP) --no-deps stable-diffusion-sdkit==2.1.5
	touch $@

clean:
	rm -rf .venv build out
