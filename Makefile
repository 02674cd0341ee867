# Tasks in a checkout; `make` alone lists them.
#
# Every target sets up what it needs. PYTHON=python3.12 (or a path) chooses the interpreter that makes .venv.

.DEFAULT_GOAL := help
.PHONY: help venv test quick demo lint map bench soak orders lock clean

python  := .venv/bin/python
ready   := .venv/.ready
testing := .venv/.ready-tests

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		while IFS='|' read -r name does; do printf '  make %-6s %s\n' "$$name" "$$does"; done

venv: $(ready) ## make .venv with backyfs, and install missing Debian packages (two minutes)

# The script writes the stamps itself, as its last step.
$(ready): pyproject.toml contrib/setup.sh requirements/build.txt requirements/run.txt
	@contrib/setup.sh

$(testing): pyproject.toml contrib/setup.sh requirements/build.txt requirements/dev.txt
	@contrib/setup.sh tests

test: lint ## set up what the tests need, check the code, run all tests
	$(python) -m pytest -n auto --dist worksteal

quick: $(testing) ## check the code and run the fast tests (one minute)
	@contrib/quick.sh

demo: $(ready) ## back up, mount and compare a small disk image (ten seconds, after the set-up)
	@contrib/demo.sh

lint: $(testing) ## check the code with ruff and mypy
	$(python) -m ruff check
	$(python) -m mypy

map: $(testing) ## print every module with its first line, and which package imports which
	$(python) contrib/map.py

bench: $(testing) ## measure backyfs against references (twelve minutes, 12 GiB of disk)
	$(python) -m benchmarks

soak: $(testing) ## run backups, cleanups and mounts, and kill them, for twenty minutes (SOAK_MINUTES=20)
	$(python) -m tests.soak

orders: $(testing) ## try every order of the transactions of three commands (hours)
	EVERY_ORDER=1 $(python) -m pytest tests/fault/test_interleaved_cleanup.py

lock: ## update requirements/*.txt to the newest releases (PACKAGE=name: only that package)
	@contrib/lock.sh $(PACKAGE)

clean: ## remove caches and build output; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +
