#!/usr/bin/env bash
# Make the environment of the lock file: install.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2
uv_version=0.13.9

if ! command -v "$python" >/dev/null 2>&1; then
    python=python3
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    echo "error: Python 3.11 is needed; install it, or name it: make up PYTHON=/path/to/python3.11" >&2
    exit 1
fi
free_gb=$(df -Pk . | awk 'NR==2 {print int($4 / 1048576)}')
if [ ! -d "$venv" ] && [ "$free_gb" -lt 14 ]; then
    echo "error: $free_gb GB free here, 14 GB are needed (8 for the environment, the rest for models); make room" >&2
    exit 1
fi
if ! "$python" -m venv "$venv"; then
    echo "error: cannot make $venv; on Debian: apt-get install python3.11-venv" >&2
    exit 1
fi
echo "installing the packages of requirements.lock (a few minutes, about 7 GB) …"
offline='error: the packages could not be installed; see above. Without a network, a package index is needed once: check the connection (or the proxy and index settings of pip and uv), then call make again: it goes on where it stopped.'
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version" || { echo "$offline" >&2; exit 1; }
"$venv/bin/uv" pip sync --python "$venv/bin/python" requirements.lock || { echo "$offline" >&2; exit 1; }
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable . || { echo "$offline" >&2; exit 1; }
