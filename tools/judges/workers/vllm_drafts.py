"""Generate greedily with real vLLM and record every draft; runs in vLLM's own environment, imports nothing of ours.

    python vllm_drafts.py cases.json answers.json

cases.json: [{target, head, num_draft_tokens, parallel, prompts, max_new_tokens, concurrency}]; head null: no
speculation. One engine per case, one after the other in this process (a fork after importing vLLM hangs). answers.json:
per case {outputs, steps, drafts, accepted}; steps[p] = [{emitted, drafts}] is what the target emitted for prompt p in
one step and what the drafter then proposed; drafts and accepted are vLLM's own counters.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

Recorded = dict[str, list[dict[str, list[int]]]]


def record_drafts(into: list[Recorded]) -> None:
    """Wrap the runner's drafting method: it runs as it is, its arguments and result are noted in into[-1]."""
    propose = GPUModelRunner.propose_draft_token_ids

    def propose_and_note(self: Any, scheduler_output: Any, sampled_token_ids: Any, *rest: Any, **named: Any) -> Any:
        drafts = propose(self, scheduler_output, sampled_token_ids, *rest, **named)
        rows = zip(self.input_batch.req_ids, sampled_token_ids.tolist(), drafts.tolist(), strict=True)
        for request, emitted, proposed in rows:
            step = {"emitted": [token for token in emitted if token >= 0], "drafts": proposed}
            into[-1].setdefault(request, []).append(step)
        return drafts

    GPUModelRunner.propose_draft_token_ids = propose_and_note


def engine(case: dict[str, Any]) -> LLM:
    """Start an engine: fp32, eager, a whole batch in one chunk.

    vLLM gives the last row of an unfinished chunk a wrong token.
    """
    drafts = case["num_draft_tokens"] if case["head"] else 0
    longest = max(map(len, case["prompts"]))
    speculative = {
        "method": "eagle3",
        "model": case["head"],
        "num_speculative_tokens": drafts,
        "parallel_drafting": case["parallel"],
    }
    return LLM(
        case["target"],
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=longest + case["max_new_tokens"] + 2 * drafts + 2,
        max_num_seqs=case["concurrency"],
        max_num_batched_tokens=(longest + 2 * drafts + 2) * case["concurrency"] + case["max_new_tokens"],
        enable_prefix_caching=False,
        disable_log_stats=False,
        speculative_config=speculative if drafts else None,
    )


def run(case: dict[str, Any], recorded: list[Recorded]) -> dict[str, Any]:
    recorded.append({})
    llm = engine(case)
    recorded[-1].clear()  # a warm-up pass is no draft
    sampling = SamplingParams(temperature=0, max_tokens=case["max_new_tokens"], ignore_eos=True, detokenize=False)
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in case["prompts"]]
    answers = llm.generate(prompts, sampling, use_tqdm=False)
    counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    return {
        "outputs": [list(answer.outputs[0].token_ids) for answer in answers],
        "steps": steps_of([answer.request_id for answer in answers], recorded[-1]),
        "drafts": counters.get("vllm:spec_decode_num_drafts", 0),
        "accepted": counters.get("vllm:spec_decode_num_accepted_tokens", 0),
    }


def steps_of(request_ids: list[str], recorded: Recorded) -> list[list[dict[str, list[int]]]]:
    """Return the recorded steps in the order of the prompts.

    Inside the engine a request's id is the public one and a random suffix.
    """
    by_public_id = {name.rsplit("-", 1)[0]: steps for name, steps in recorded.items()}
    return [recorded.get(name, by_public_id.get(name, [])) for name in request_ids]


def main() -> None:
    cases, answers = map(Path, sys.argv[1:])
    recorded: list[Recorded] = []
    record_drafts(recorded)
    answers.write_text(json.dumps([run(case, recorded) for case in json.loads(cases.read_text())]))


if __name__ == "__main__":
    main()
