#!/bin/sh
# Installs eFedLLM into .venv, once, and runs `efedllm demo` with whatever arguments are given.
set -eu
environment=run
. "$(dirname "$0")/environment.sh"
exec "$root/.venv/bin/efedllm" demo "$@"
