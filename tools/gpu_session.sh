#!/usr/bin/env bash
# Fifteen minutes on one GPU, riskiest first, in two calls of under ten minutes each (docs/gpu.md):
#
#     bash tools/gpu_session.sh right      kernels, then every drafter pass beside the reference loop
#     bash tools/gpu_session.sh fast       none, EAGLE3 and PEAGLE at Llama-3.1-8B's size, then flashinfer
#
# Every step has a limit and a log; a step that fails ends nothing. Logs, reports and times go to $OUT, everything
# large to $WORK. $PY is a Python that has SGLang and this project's packages.
set -u
cd "$(dirname "$0")/.." || exit 2
PY=${PY:-.venv/bin/python} OUT=${OUT:-build/gpu} WORK=${WORK:-/tmp/peagle-gpu}
mkdir -p "$OUT" "$WORK"
# What SGLang, Triton and FlashInfer compile is kept for the next server.
export TVM_FFI_CACHE_DIR=${TVM_FFI_CACHE_DIR:-$WORK/tvm} TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$WORK/triton}
export FLASHINFER_WORKSPACE_BASE=${FLASHINFER_WORKSPACE_BASE:-$WORK} HF_HUB_OFFLINE=1

step() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS code
    shift 2
    timeout --signal=INT --kill-after=10 "$limit" "$@" >"$OUT/$name.txt" 2>&1
    code=$?
    echo "$name: exit code $code after $((SECONDS - start)) s (limit $limit): $*" | tee -a "$OUT/steps.txt"
    tail -n 4 "$OUT/$name.txt"
    return $code
}

parity() { # CASE SECONDS
    rm -f "$WORK/parity/report.json"
    step "parity-$1" "$2" "$PY" -m tools.bench parity --case "$1" --output "$WORK/parity"
    local code=$?
    cp "$WORK/parity/report.json" "$OUT/parity-$1.json"
    tail -c 20000 "$WORK/parity/$1/log" >"$OUT/parity-$1.log"
    return $code
} 2>/dev/null

right() {
    nvidia-smi >"$OUT/gpu.txt" 2>&1
    parity default 220 || parity eager 80 # the first start compiles for two or three minutes
    parity adaptive 80
    parity fp8 60
    parity stress 65
    parity triton 65
}

fast() {
    step speed 330 "$PY" -m tools.bench serve --size llama-3.1-8b --simulate-accept-length 3.2 --k 5 \
        --concurrency 1,8,32 --max-new-tokens 128 --output "$WORK/speed"
    cp "$WORK"/speed/results.* "$WORK"/speed/report.html "$OUT"
    parity flashinfer 150
}

case ${1:-} in
right | fast) "$1" ;;
*) echo "usage: bash tools/gpu_session.sh right|fast" >&2 && exit 2 ;;
esac
