#!/usr/bin/env bash
# `make quick` runs this: check the code and run the fast tests at the same time. It takes about a minute on two cores and
# needs neither root nor a server.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python
"$python" -m ruff check
"$python" -m mypy >.venv/mypy.log 2>&1 &
types=$!
status=0
"$python" -m pytest -q -n logical --dist worksteal -m "not slow and not root and not server" tests/unit tests/contract ||
    status=$?
wait "$types" || status=$?
cat .venv/mypy.log
exit "$status"
