r"""Serve without speculation, with EAGLE3 and with PEAGLE side by side, on the data sets that papers use.

    python -m tools.bench serve --target TARGET --peagle HEAD --eagle3 HEAD --k 3,5,7 --concurrency 1,4 \
        --data mt_bench=question.jsonl --data HumanEval.jsonl.gz --data gsm8k=test.jsonl --limit 80
    python -m tools.bench serve --url http://localhost:30000 --url http://localhost:30001 --data HumanEval.jsonl.gz
    python -m tools.bench serve --size llama-3.1-8b --simulate-accept-length 3=2.6,5=3.2,7=3.6 --concurrency 1,2,4,64

Starts the servers itself (on this machine's GPU, else on the CPU reference platform), or measures some that run. For
each K the servers take turns on the same questions, a block each, so that a slow spell of the machine meets them alike.

Data sets come in the files that people have: MT-Bench, Spec-Bench and SPEED-Bench (`turns`), HumanEval (`prompt`),
GSM8K (`question`), ShareGPT (an array with `conversations`), and lines of {"prompt"}, {"messages"} or {"input_ids"};
.jsonl and .json, also .gz, and .parquet. Conversations go on with the server's own answers.

With --size nothing is downloaded: SGLang fills a target, a P-EAGLE head of 4 layers and an EAGLE-3 head of 1 with
random weights and makes up the acceptance. Times are real, texts are not. The time of a step's drafting stands beside
its floor (bytes of its weights / bandwidth of a copy, measured here), ratios beside the paper's Table 10. Nothing of
this has run on a GPU yet.

Writes into --output: results.json and results.csv (tok/s, speed-up, TTFT, ITL, acceptance length and per position,
equality of the outputs, memory; the CSV also by category), speed, acceptance and concurrency as .png and .svg, and
report.html: all of it on one page that needs no network, with answers coloured by what was drafted, accepted and
corrected.
"""

from tools.bench.serve.command import add_arguments, run

__all__ = ["add_arguments", "run"]
