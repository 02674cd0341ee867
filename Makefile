# What there is to do in a checkout; `make` alone lists it.
#
# Every target brings its own set-up. With PYTHON=python3.12 (or a path) that interpreter makes .venv.

.DEFAULT_GOAL := help
.PHONY: help venv test quick demo lint map bench soak orders lock clean

python  := .venv/bin/python
ready   := .venv/.ready
testing := .venv/.ready-tests

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		while IFS='|' read -r name does; do printf '  make %-6s %s\n' "$$name" "$$does"; done

venv: $(ready) ## set up .venv with backyfs, and missing Debian packages (two minutes)

# The script writes the stamps itself, as its last step.
$(ready): pyproject.toml contrib/setup.sh requirements/build.txt requirements/run.txt
	@contrib/setup.sh

$(testing): pyproject.toml contrib/setup.sh requirements/build.txt requirements/dev.txt
	@contrib/setup.sh tests

test: lint ## set up what tests need, check the code, run all tests
	$(python) -m pytest -n auto --dist worksteal

quick: $(testing) ## check the code, run the fast tests: a minute
	@contrib/quick.sh

demo: $(ready) ## set up, then back up, mount and compare a small disk image (ten seconds)
	@contrib/demo.sh

lint: $(testing) ## ruff and mypy
	$(python) -m ruff check
	$(python) -m mypy

map: $(testing) ## print every module with its first line, and which wing imports which
	$(python) contrib/map.py

bench: $(testing) ## measure backyfs against references (twelve minutes, 12 GiB of disk)
	$(python) -m benchmarks

soak: $(testing) ## twenty minutes of backups, cleanups and mounts that are killed (SOAK_MINUTES=20)
	$(python) -m tests.soak

orders: $(testing) ## every order in which three commands that delete can meet (hours)
	EVERY_ORDER=1 $(python) -m pytest tests/fault/test_interleaved_cleanup.py

lock: ## move requirements/*.txt to the newest releases (PACKAGE=name: only that one)
	@contrib/lock.sh $(PACKAGE)

clean: ## remove caches and what was built; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +
