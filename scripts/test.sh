#!/usr/bin/env bash
# Everything that has to hold: style, types, the floors of the house, and all tests, in 12 minutes on two cores.
# --full counts long (tests/conftest.py says of what) and measures how much of the code the tests run.
# Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/bootstrap.sh
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

ruff format --check .
ruff check .
mypy
lint-imports
all=(python -m pytest -n 3 --dist loadgroup --durations=15)
case "$*" in
"") exec "${all[@]}" ;;
--full) "${all[@]}" --full --cov --cov-report= && coverage report --fail-under=90 ;;
*) exec python -m pytest "$@" ;;
esac
