# Everything here sets the machine up by itself (Debian 12 or later, as root); the second run starts at once.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready
# Debian's own is built with all optimizations; one that comes first in PATH may be half as fast.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
COMPILED := $(shell sed -n 's/^    "\(fuseswap.*\.py\)",$$/\1/p' setup.py)
export DEBIAN_FRONTEND := noninteractive

.PHONY: setup demo test check torture guest bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock setup.py fuseswap/backends/nfs/build_libnfs.py $(COMPILED) tools/packages
	@sh tools/packages
	@test "$$(readlink -f $(PY))" = "$$(readlink -f $$(command -v $(PYTHON)))" || $(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@rm -f fuseswap/*/*.cpython-*.so
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: setup
	$(VENV)/bin/fuseswap demo

check: setup
	$(VENV)/bin/ruff format --check fuseswap tests bench examples
	$(VENV)/bin/ruff check fuseswap tests bench examples
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: check
	$(PY) -m pytest -n 2 --dist worksteal -m "not torture"

torture: setup
	@sh tools/packages-guest
	$(PY) -m pytest -m torture

guest: setup
	@sh tools/packages-guest
	$(PY) -m tests.guest

bench: setup
	@$(PY) -c 'import matplotlib' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check matplotlib==3.11.2
	@mkdir -p build
	$(PY) bench/run.py --json build/bench.json
	$(PY) bench/plot.py build/bench.json build/bench.png
	$(PY) bench/mount.py --json build/mount.json

clean:
	rm -rf $(VENV) build *.egg-info fuseswap/*/*.so fuseswap/backends/nfs/_libnfs.*
