#!/usr/bin/env bash
# Builds the documentation into docs/_build, a warning being an error, and serves it on this machine alone.
# --build only builds it. Another argument is the port (8000).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/bootstrap.sh
.venv/bin/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_build
if [ "${1:-}" != --build ]; then
    echo "the documentation: http://127.0.0.1:${1:-8000} (Ctrl-C ends it)"
    exec .venv/bin/python -m http.server "${1:-8000}" --bind 127.0.0.1 --directory docs/_build
fi
