#!/bin/sh
# Installs eFedLLM with its test tools into .venv, once, and runs lint, types, layers and tests.
#   scripts/test.sh           everything that belongs before a commit
#   scripts/test.sh --full    the long runs too
# Further arguments go to pytest, which then runs everything one after the other.
set -eu
environment=dev
. "$(dirname "$0")/environment.sh"
cd "$root"
bin="$root/.venv/bin"
marks="not full"
if [ "${1:-}" = --full ]; then
    marks=""
    shift
fi

echo "== lint"
"$bin/ruff" check .
"$bin/ruff" format --check .
echo "== types"
"$bin/mypy"
echo "== layers"
"$bin/lint-imports"
echo "== tests"
if [ $# -gt 0 ]; then
    exec "$bin/python" -m pytest -m "$marks" "$@"
fi
# What runs in one process, or in nodes that wait for nobody, shares the cores. Swarms of processes have them to
# themselves: what they are held to is seconds.
apart="tests/dht tests/fuzz tests/node tests/scripts"
OMP_NUM_THREADS=1 "$bin/python" -m pytest -m "$marks" -n auto --maxprocesses 8 --dist loadfile $apart
exec "$bin/python" -m pytest -m "$marks" $(printf -- '--ignore=%s ' $apart)
