# Sourced by the other scripts: makes the virtual environment .venv with everything in it, once, and keeps it current.
# Needs a Python from 3.11 to 3.13 and nothing else. Sets $python to the environment's interpreter.
# The caller sets environment=dev for the tests and environment=run otherwise.

find_python() {
    for candidate in "${EFEDLLM_PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python from 3.11 to 3.13 was found; install one, or name it in EFEDLLM_PYTHON." >&2
    return 1
}

make_environment() {
    extras="$1"
    venv="$root/.venv"
    python="$venv/bin/python"
    wanted="$extras $(cksum <"$root/pyproject.toml")"
    stamp="$venv/installed-$extras"
    if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    if [ ! -x "$python" ]; then
        base=$(find_python) || return 1
        if ! "$base" -m venv "$venv"; then
            rm -rf "$venv"
            echo "A virtual environment could not be made; on Debian: apt-get install python3-venv." >&2
            return 1
        fi
    fi
    echo "Installing into .venv (once; some minutes) ..." >&2
    # torch first and by itself: pip then keeps the build it finds instead of the newest one with GPU libraries.
    "$python" -m pip install --quiet --disable-pip-version-check "torch>=2.13,<2.14" || return 1
    if [ "$extras" = dev ]; then target="$root[dev]"; else target="$root"; fi
    "$python" -m pip install --quiet --disable-pip-version-check --editable "$target" || return 1
    echo "$wanted" >"$stamp"
}

root=$(cd "$(dirname "$0")/.." && pwd)
make_environment "$environment" || exit 1
