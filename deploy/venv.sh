#!/bin/sh
# Make a virtual environment and install the project into it; return at once when nothing changed.
#
#   deploy/venv.sh VENV            with $PYTHON, else as it was made, else with the first Python from 3.11 that works
#   deploy/venv.sh VENV PYTHON     with this interpreter
#
# $EXTRA names what is installed beside the project: "dev" (the default) or "test", see pyproject.toml.
# "Nothing changed" is read from VENV/.installed, which names the place, the interpreter and a checksum of what pip
# reads: time stamps would lie after a git checkout, and a moved checkout has a venv that points elsewhere.
set -eu

venv=$1
python=${2:-${PYTHON:-}}
extra=${EXTRA:-dev}
versions=${PYENV_ROOT:-$HOME/.pyenv}/versions

# An interpreter may exist and still not run (a pyenv shim), be too old, or lack ensurepip (Debian without python3-venv).
suits() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

identity() { "$1" -c 'import sys; print(sys.version, sys.base_prefix)' 2>/dev/null; }

stamp() {
    pwd
    echo "$extra"
    identity "$venv/bin/python"
    cat pyproject.toml setup.py 2>/dev/null | cksum
}

if [ -n "$python" ]; then
    suits "$python" || {
        echo "Expected a Python from 3.11 on with the modules venv and ensurepip, got: $python" >&2
        exit 2
    }
    [ "$(identity "$python")" = "$(identity "$venv/bin/python")" ] || rm -rf "$venv"
fi

# Without pip in it, the making of the venv was interrupted, or the interpreter behind it is gone.
if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    for candidate in python3.11 python3.12 python3.13 python3.14 python3 python "$versions"/3.1[1-9]*/bin/python3; do
        [ -z "$python" ] || break
        if suits "$candidate"; then python=$candidate; fi
    done
    [ -n "$python" ] || {
        echo "No Python from 3.11 on with the modules venv and ensurepip was found." >&2
        echo "Looked on PATH and in $versions; PYTHON=/path/to/python names another one." >&2
        echo "On Debian and Ubuntu, ensurepip comes with the package python3-venv." >&2
        exit 2
    }
    echo "Making $venv with $("$python" -V)"
    "$python" -m venv --clear "$venv"
fi

if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$(stamp)" ]; then
    echo "Installing into $venv (about a minute the first time)"
    rm -f "$venv/.installed"
    # What compiles the engine is deploy/build.py, with the compiler's types from this very environment.
    DOJIMA_BACKEND=interpreted "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --editable ".[$extra]"
    stamp >"$venv/.installed"
fi
