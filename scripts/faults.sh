#!/usr/bin/env bash
# Tries every fault of tests/faults as often as docs/explanation/faults.md says, and rewrites that page. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/bootstrap.sh
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1

counts=$(mktemp -d)
trap 'rm -rf "$counts"' EXIT
status=0
.venv/bin/python -m pytest tests/faults -n 2 --dist loadgroup --full --counts "$counts" --timeout 3600 "$@" || status=$?
.venv/bin/python tests/faults/report.py "$counts" docs/explanation/faults.md
exit "$status"
