"""Check a converted head in real vLLM: it serves prompts, and its drafts must be our reference loop's.

vLLM runs on the CPU in float32, in an environment of its own (`tools.judges.vllm`): for targets that a CPU can serve.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from peagle_core.checkpoint import load_drafter
from peagle_core.config_formats import DEFAULT_SPECULATIVE_TOKENS
from peagle_core.errors import InputError
from peagle_core.generate import speculate
from tools.heads.target import Target
from tools.heads.texts import short_texts
from tools.judges.vllm import ENVIRONMENT, Case, Served, is_installed, serve_in_vllm

NEW_TOKENS = 32
# Below it something is read differently; above it two nearly equal logits may have changed places.
LEAST_EQUAL = 0.99


def require_vllm(target: Path | None) -> None:
    """Refuse with InputError, before any work, a check that cannot be done."""
    if target is None:
        raise InputError("--check vllm serves the target too: give it with --target")
    if not is_installed():
        raise InputError(f"--check vllm needs {ENVIRONMENT}: run `make {ENVIRONMENT}/.installed` first")


def check_in_vllm(head: Path, target: Target) -> str:
    """Serve prompts with the head in vLLM and return what it did, in one sentence.

    head: a directory in a format that vLLM loads.
    Raises InputError when vLLM fails, changes the target's output, or drafts something else.
    """
    prompts = short_texts(target)
    plain = Case(str(target.directory), prompts, NEW_TOKENS)
    model = AutoModelForCausalLM.from_pretrained(target.directory, dtype=torch.float32, local_files_only=True).eval()
    drafter = load_drafter(head, torch.float32, model)
    k = drafter.config.num_depths or DEFAULT_SPECULATIVE_TOKENS
    case = Case(str(target.directory), prompts, NEW_TOKENS, head=str(head), num_draft_tokens=k)
    without, served = serve_in_vllm([plain, case])
    if served.outputs != without.outputs:
        raise InputError("vLLM's output with the head is not its output without one")
    drafts = [speculate(model, drafter, torch.tensor(p), k, NEW_TOKENS).draft_tokens for p in prompts]
    equal, total = count_equal(served, drafts)
    if equal < LEAST_EQUAL * total:
        raise InputError(f"vLLM reads the head differently: {equal} of its {total} drafts are our reference loop's")
    return (
        f"vLLM served {len(prompts)} prompts x {NEW_TOKENS} tokens at K = {k}: output equal to no speculation, "
        f"{equal} of {total} drafts our reference loop's, acceptance length {served.accept_length:.2f}"
    )


def count_equal(served: Served, drafts: list[list[list[int]]]) -> tuple[int, int]:
    """Return (equal, compared) draft tokens; drafts[p][i]: our K drafts after step i of prompt p."""
    pairs = [
        (theirs, ours)
        for steps, expected in zip(served.steps, drafts, strict=True)
        for step, tokens in zip(steps, expected, strict=False)
        for theirs, ours in zip(step.drafts, tokens, strict=True)
    ]
    return sum(theirs == ours for theirs, ours in pairs), len(pairs)
