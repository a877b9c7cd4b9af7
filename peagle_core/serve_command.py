"""How an engine is told to serve a head: the one place that knows the flags of SGLang and vLLM.

SGLang's EAGLE3 drafts trees unless `--speculative-eagle-topk` is 1, and then wants K + 1 draft tokens, for it counts
the verified rows; PEAGLE always drafts a chain and follows from K alone. vLLM serves both as `eagle3`.
"""

from __future__ import annotations

import json


def sglang_arguments(head: str, num_draft_tokens: int, autoregressive: bool) -> list[str]:
    """Return what SGLang's server is told of its drafter.

    head: directory or name on the hub; num_draft_tokens: K; autoregressive: an EAGLE-3 head.
    """
    arguments = ["--speculative-algorithm", "EAGLE3" if autoregressive else "PEAGLE"]
    arguments += ["--speculative-draft-model-path", head, "--speculative-num-steps", str(num_draft_tokens)]
    if autoregressive:
        arguments += ["--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", str(num_draft_tokens + 1)]
    return arguments


def sglang_command(target: str, head: str, num_draft_tokens: int, autoregressive: bool) -> list[str]:
    """Return the command that serves a head with SGLang; see `sglang_arguments`."""
    command = ["python", "-m", "sglang.launch_server", "--model-path", target]
    return command + sglang_arguments(head, num_draft_tokens, autoregressive)


def vllm_command(target: str, head: str, num_draft_tokens: int, autoregressive: bool) -> list[str]:
    """Return the command that serves a head with vLLM; arguments as for SGLang."""
    speculative = {
        "method": "eagle3",
        "model": head,
        "num_speculative_tokens": num_draft_tokens,
        "parallel_drafting": not autoregressive,
    }
    return ["vllm", "serve", target, "--speculative-config", json.dumps(speculative)]
