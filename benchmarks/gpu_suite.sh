#!/usr/bin/env bash
# Everything worth knowing of a CUDA device, in one command of at most nine minutes, or some of its stages: the GPU tests,
# GAE, throughput against the environments' own speed, and Pong until it scores 18. Writes at most eight files into --out.
# Without a CUDA device it says so, records nothing and exits 0.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage="usage: benchmarks/gpu_suite.sh --out DIR [tests|gae|throughput|pong ...]"
[[ $# -ge 2 && $1 == --out && -n $2 ]] || { echo "$usage" >&2; exit 2; }
out=$2
stages=("${@:3}")
((${#stages[@]})) || stages=(tests gae throughput pong)
for stage in "${stages[@]}"; do
    [[ $stage =~ ^(tests|gae|throughput|pong)$ ]] || { echo "$usage" >&2; exit 2; }
done
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
# stage NAME [--signal=S] SECONDS COMMAND...: a stage that fails or takes too long does not keep the others from running.
stage() {
    local name=$1 began=$SECONDS
    shift
    echo "== $name"
    timeout --kill-after=10 "$@" || failed+=("$name ($?)")
    echo "== $name took $((SECONDS - began)) s"
}

# The files are named, as others would be read too, and want what is not there. SIGINT has pytest tell what it has found.
tests() {
    local workers=()
    "$python" -c 'import xdist' 2>/dev/null && workers=(-n 4)
    stage tests --signal=INT 200 "$python" -m pytest -q -m gpu -rf --tb=short --maxfail=20 ${workers[@]+"${workers[@]}"} \
        --junitxml="$scratch/tests.xml" tests/test_gpu.py tests/learning/test_gae_triton.py \
        > >(tee "$out/gpu_tests.log") 2>&1  # a pipe would forget what has failed
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

gae() {
    stage gae 60 "$python" benchmarks/gae.py --sizes 8x256 128x4096 512x65536 --seconds 0.3 --repeats 3 --json "$out/gae.json"
}

throughput() {
    stage "throughput Pong 256" 50 "$python" benchmarks/throughput.py --env Atari/Pong --num-envs 256 --num-steps 8 \
        --seconds 1.5 --repeats 3 --json "$out/throughput_pong_256.json"
    stage "throughput Pong 4096" 90 "$python" benchmarks/throughput.py --env Atari/Pong --num-envs 4096 --num-steps 8 \
        --seconds 1 --repeats 2 --json "$out/throughput_pong_4096.json"
    stage "throughput CartPole 4096" 40 "$python" benchmarks/throughput.py --env Classic/CartPole --num-envs 4096 \
        --num-steps 16 --seconds 1.5 --repeats 3 --json "$out/throughput_cartpole_4096.json"
}

for stage in "${stages[@]}"; do
    "$stage"
done

if ((${#failed[@]})); then
    printf 'gpu_suite.sh: failed: %s\n' "${failed[*]}" >&2
    exit 1
fi
