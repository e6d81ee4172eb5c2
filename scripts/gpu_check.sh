#!/usr/bin/env bash
# Proves every engine that this machine has, on its GPU, and prints one table. Installs nothing.
# Usage: scripts/gpu_check.sh [OUT]    PYTHON names the interpreter that has dec-export.
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
# The plugin's kernels by themselves: equality, time, share of this GPU's peak.
"$PYTHON" scripts/gpu_solver.py --out "$OUT" || failed=$?
if "$PYTHON" -c 'import pytest, hypothesis' 2>/dev/null; then
    "$PYTHON" -m pytest -q tests/gpu || failed=$?
else
    echo "tests/gpu was left out: pytest is not installed (pip install 'dec-export[test]')." >&2
fi
exit "$failed"
