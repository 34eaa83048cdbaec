#!/bin/sh
# Installs eFedLLM with its test tools into .venv, once, and runs lint, types, layers and tests.
#   scripts/test.sh           everything that belongs before a commit
#   scripts/test.sh --full    the long runs too
# Further arguments go to pytest.
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
exec "$bin/python" -m pytest -m "$marks" "$@"
