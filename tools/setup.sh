#!/bin/sh
# Make a virtual environment from the lock: `setup.sh VENV LOCK`. Uses uv where it is there, else venv and pip.
set -eu
venv=$1
lock=$2
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    for candidate in python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c '' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "set-up: moorage needs Python 3.11 or newer; name one with PYTHON=/path/to/python3.12" >&2
    exit 1
}

if command -v uv >/dev/null 2>&1; then
    echo "set-up: making $venv with uv"
    UV_PYTHON_DOWNLOADS=never uv venv --quiet --clear --python "$python" "$venv"
    VIRTUAL_ENV=$venv uv pip install --require-hashes -r "$lock"
    VIRTUAL_ENV=$venv uv pip install --quiet --no-deps --editable .
else
    echo "set-up: making $venv with venv and pip (about a minute the first time)"
    "$python" -m venv --clear "$venv" || {
        echo "set-up: python's venv module is missing (Debian: apt-get install python3-venv)" >&2
        exit 1
    }
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --require-hashes -r "$lock"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
fi
echo "set-up: done"
