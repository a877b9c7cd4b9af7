"""Serving: no speculation, EAGLE3 and PEAGLE side by side, on the data sets that papers use.

    python -m tools.bench serve --target TARGET --peagle HEAD --eagle3 HEAD --k 3,5,7 --concurrency 1,4 \\
        --data mt_bench=question.jsonl --data HumanEval.jsonl.gz --data gsm8k=test.jsonl --limit 80
    python -m tools.bench serve --url http://localhost:30000 --url http://localhost:30001 --data HumanEval.jsonl.gz

Starts the servers itself (on this machine's GPU, else on the CPU reference platform), or measures some that run. For
each K the servers take turns on the same questions, a block each, so that a slow spell of the machine meets them alike.

Data sets come in the files that people have: MT-Bench, Spec-Bench and SPEED-Bench (`turns`), HumanEval (`prompt`),
GSM8K (`question`), ShareGPT (an array with `conversations`), and lines of {"prompt"}, {"messages"} or {"input_ids"};
.jsonl and .json, also .gz, and .parquet. Conversations go on with the server's own answers.

Writes into --output: results.json and results.csv (tok/s, speed-up, TTFT, ITL, acceptance length and per position,
equality of the outputs, memory; the CSV also by category), speed, acceptance and concurrency as .png and .svg, and
report.html: all of it on one page that needs no network, with answers coloured by what was drafted, accepted and
corrected.
"""

from tools.bench.serve.command import add_arguments, run

__all__ = ["add_arguments", "run"]
