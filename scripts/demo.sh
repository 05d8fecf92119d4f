#!/usr/bin/env bash
# The main job on real data: one sentiment classifier, four domains, several rules. Arguments go to the example.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/bootstrap.sh
exec .venv/bin/python examples/domains.py "$@"
