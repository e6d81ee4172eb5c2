#!/usr/bin/env bash
# This program proves every engine of this machine on its GPU and prints one table. It installs nothing.
# Usage: scripts/gpu_check.sh [OUT]
# OUT is the folder for results (build/gpu-check by default). The variable PYTHON names the Python that has dec-export.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
OUT=${1:-build/gpu-check}
"$PYTHON" -c 'import dec_export' 2>/dev/null || {
    echo "dec-export is not installed for $PYTHON: run 'make demo' first, or set PYTHON." >&2
    exit 2
}
"$PYTHON" -m dec_export doctor
failed=0
"$PYTHON" scripts/gpu_check.py --out "$OUT" || failed=$?
[ "$failed" -ne 2 ] || exit 2
# This runs the plugin's kernels alone, and shows their equality, their time and their share of this GPU's peak.
"$PYTHON" scripts/gpu_solver.py --out "$OUT" || failed=$?
if "$PYTHON" -c 'import pytest, hypothesis' 2>/dev/null; then
    "$PYTHON" -m pytest -q tests/gpu || failed=$?
else
    echo "tests/gpu was left out: pytest is not installed (pip install 'dec-export[test]')." >&2
fi
exit "$failed"
