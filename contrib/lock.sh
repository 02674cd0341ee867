#!/usr/bin/env bash
# Write requirements/*.txt: the exact releases, with hashes, that the set-up and continuous integration install.
#
# `make lock` runs this; `make lock PACKAGE=name` updates one package and leaves the others. The resolver is installed from the
# package index into a temporary environment. Read the difference before you commit it.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python3 -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install -q --disable-pip-version-check --no-input uv

upgrade=(--upgrade)
if [ -n "${1:-}" ]; then
    upgrade=(--upgrade-package "$1")
fi

# Resolve for every supported Python. Write no address of an index: mirrors are those of the environment.
compile() {
    "$scratch/venv/bin/uv" pip compile -q --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --custom-compile-command "make lock" "${upgrade[@]}" "$@"
}

# Tools that build backyfs and packages without a wheel (pyfuse3). They are installed first, so no build fetches more.
printf '%s\n' 'Cython' 'setuptools>=78.1.1' 'setuptools_scm>=8.0' >"$scratch/build.in"
compile --no-annotate "$scratch/build.in" -o requirements/build.txt
compile --extra postgresql --extra mysql pyproject.toml -o requirements/run.txt
compile --extra dev --constraint requirements/build.txt pyproject.toml -o requirements/dev.txt
