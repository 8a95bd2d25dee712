#!/usr/bin/env bash
# What takes too long for every change: the longer learning tasks, thousands of odd configurations and command lines, fifty
# kills and other faults, and an id of each pair of spaces (an hour).
# usage: benchmarks/nightly.sh [OUT]; the coverage's JSON and table go to the folder OUT, the working directory unless given.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-.}
mkdir -p "$out"
python=${PYTHON:-python3}
status=0
"$python" -m pytest -m nightly --durations=0 || status=$?
FUZZ=20 "$python" -m pytest tests/test_config.py tests/test_cli.py || status=$?
"$python" benchmarks/faults.py --json "$out/faults.json" || status=$?
"$python" benchmarks/coverage.py --distinct --json "$out/coverage.json" --markdown "$out/coverage.md" || status=$?
exit "$status"
