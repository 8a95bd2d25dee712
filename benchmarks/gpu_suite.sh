#!/usr/bin/env bash
# Everything worth knowing of a CUDA device, in one command of less than nine minutes: the GPU tests, throughput against
# the environments' own speed, GAE, and Pong until it scores 18. Writes at most eight JSON files into --out.
# Without a CUDA device it says so, records nothing and exits 0.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage="usage: benchmarks/gpu_suite.sh --out DIR"
[[ $# -eq 2 && $1 == --out && -n $2 ]] || { echo "$usage" >&2; exit 2; }
out=$2
python=${PYTHON:-python3}

"$python" -c 'import torch' || { echo "gpu_suite.sh: error: $python has no torch; set PYTHON" >&2; exit 2; }
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu_suite.sh: no CUDA device here; nothing measured, nothing recorded"
    exit 0
fi
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

failed=()
# stage NAME SECONDS COMMAND...: a stage that fails or takes too long does not keep the others from running.
stage() {
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    echo "== $name"
    timeout --kill-after=5 "$limit" "$@" || failed+=("$name ($?)")
    echo "== $name took $((SECONDS - began)) s"
}

tests() {
    stage tests 120 "$python" -m pytest -q -m gpu --junitxml="$scratch/tests.xml"
    [[ -s $scratch/tests.xml ]] || return 0
    "$python" - "$scratch/tests.xml" >"$out/gpu_tests.json" <<'PY'
import json, sys, xml.etree.ElementTree as xml
suite = xml.parse(sys.argv[1]).getroot().find("testsuite")
print(json.dumps({k: float(suite.get(k)) if k == "time" else int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped", "time")}))
PY
}

# SIGTERM is how a user would end the run: it saves, writes its summary and leaves with 143.
pong() {
    local began=$SECONDS
    echo "== pong"
    timeout --signal=TERM --kill-after=20 100 "$python" -m fasta2c train --env Atari/Pong --num-envs 128 --stop-at-return 18 \
        --run-dir "$scratch/pong"
    [[ $? =~ ^(0|124)$ && -s $scratch/pong/summary.json ]] || failed+=(pong)
    cp "$scratch/pong/summary.json" "$out/pong_training.json"
    echo "== pong took $((SECONDS - began)) s"
}

tests
stage gae 50 "$python" benchmarks/gae.py --sizes 8x256 128x4096 512x65536 --seconds 0.3 --repeats 3 --json "$out/gae.json"
for envs in 256 1024 4096; do
    stage "throughput Pong $envs" 60 "$python" benchmarks/throughput.py --env Atari/Pong --num-envs "$envs" --num-steps 8 \
        --seconds 1.5 --repeats 3 --json "$out/throughput_pong_$envs.json"
done
stage "throughput CartPole 4096" 50 "$python" benchmarks/throughput.py --env Classic/CartPole --num-envs 4096 \
    --num-steps 16 --seconds 1.5 --repeats 3 --json "$out/throughput_cartpole_4096.json"
pong

if ((${#failed[@]})); then
    printf 'gpu_suite.sh: failed: %s\n' "${failed[*]}" >&2
    exit 1
fi
