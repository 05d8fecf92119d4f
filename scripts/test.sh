#!/usr/bin/env bash
# Everything that has to hold: style, types, the floors of the house, and all tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/bootstrap.sh
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1

ruff format --check .
ruff check .
mypy
lint-imports
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
python -m pytest -n 2 --dist loadgroup --cov --cov-report= --durations=15
coverage report --fail-under=90
