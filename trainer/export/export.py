"""`export`: a training checkpoint as a directory to hand on: weights, run.yaml, data.json, metrics.json, model card."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from peagle_core.atomic import new_directory
from peagle_core.checkpoint import load_drafter, save_drafter
from peagle_core.config_formats import refuse_experiments
from peagle_core.end_ids import ids_of
from peagle_core.errors import InputError
from peagle_core.generate import speculate
from trainer.checkpoint.checkpoints import load_trained, newest_checkpoint, read_step
from trainer.config import RunConfig
from trainer.evaluation.evaluate import prompts_of
from trainer.export.model_card import model_card
from trainer.inputs import load_inputs
from trainer.target.context import room_for_answer
from trainer.train.run_directory import read_record, write_record

VERIFY_PROMPTS = 2


def run_export(
    config: RunConfig, checkpoint: Path | None = None, destination: Path | None = None, verify: bool = False
) -> Path:
    """Write the drafter of a training checkpoint (default: the newest) as a head directory. Never overwrites.

    An embedding that was not trained is the target's, and left out: engines share it. verify: draft for two
    held-out prompts from the written files before they appear; the output must be the target's own.
    Raises InputError where anything is missing or wrong; nothing is left behind then.
    """
    checkpoint = checkpoint or newest_checkpoint(config.checkpoints)
    if checkpoint is None:
        raise InputError(f"{config.checkpoints}: no checkpoint to export")
    destination = destination or config.output / "head"
    if destination.exists():
        raise InputError(f"{destination}: exists already; choose another --to")
    drafter = load_trained(checkpoint)
    refuse_experiments(drafter.config)
    step = read_step(checkpoint)
    data, metrics = read_record(config.output / "data.json"), _metrics(config, step)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with new_directory(destination) as partial:
            save_drafter(drafter, partial, getattr(torch, config.head_dtype), config.drafter.train_embedding)
            config.save(partial / "run.yaml")
            for name, record in (("data.json", data), ("metrics.json", metrics)):
                if record is not None:
                    write_record(partial / name, record)
            (partial / "README.md").write_text(model_card(config, drafter.config, step, data, metrics))
            if verify:
                _verify(config, partial)
    except OSError as error:
        raise InputError(f"{destination}: cannot be written ({error})") from None
    print(f"{checkpoint} -> {destination}")
    return destination


def _metrics(config: RunConfig, step: int) -> dict[str, Any] | None:
    """Return what is known of the weights of this step.

    After training from stored states nothing has been drafted; an evaluation of the same head since then has.
    """
    metrics = read_record(config.output / "metrics.json")
    if metrics is not None and metrics.get("step") != step:
        print(f"{config.output / 'metrics.json'} is of another step and is left out")
        return None
    since = read_record(config.output / "eval.json")
    if metrics is not None and since is not None and since.get("head") == metrics.get("head"):
        return {**since, "step": step}
    return metrics


def _verify(config: RunConfig, head: Path) -> None:
    """Draft from the files. In float32 the output must equal the target's; below that, ties may break otherwise.

    How much of a tie it was is said: the reader judges.
    """
    inputs = load_inputs(config)
    target = inputs.model
    assert target is not None
    drafter = load_drafter(head, torch.float32, target).to(config.device)
    documents = [*inputs.to_answer, *inputs.train]  # held-out ones first
    prompts = prompts_of(documents, VERIFY_PROMPTS, config.eval.prompt_tokens)
    if not prompts:
        raise InputError("--verify: no document is longer than its prompt; lower eval.prompt_tokens")
    num_drafts = drafter.config.num_depths or max(config.eval.num_draft_tokens)
    for number, prompt in enumerate(prompts, start=1):
        prompt = prompt.to(config.device)
        length = max(2, room_for_answer(target.config, len(prompt), num_drafts, config.eval.max_new_tokens))
        result = speculate(target, drafter, prompt, num_drafts, length, eos_token_id=inputs.end_ids)
        own = greedy(target, prompt, length, inputs.end_ids)
        equal = result.output_ids == own
        if not equal and target.dtype == torch.float32:
            raise InputError(f"--verify: prompt {number} has another output with the exported head than without")
        print(
            f"verify, prompt {number}: {len(own)} tokens, acceptance length {result.mean_accept_length:.2f}, "
            f"output equal to the target's own{'' if equal else _until(target, prompt, own, result.output_ids)}"
        )


@torch.no_grad()
def _until(target: PreTrainedModel, prompt: Tensor, own: list[int], other: list[int]) -> str:
    """Say where two outputs part, and how far apart the target's logits of the two tokens are there."""
    equal = next(i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b)
    tokens = torch.cat([prompt, prompt.new_tensor(own[:equal])])
    logits = target(input_ids=tokens[None], logits_to_keep=1).logits[0, -1]
    gap = float((logits[own[equal]] - logits[other[equal]]).abs())
    dtype = str(target.dtype).removeprefix("torch.")
    return f" for {equal} tokens; the {dtype} logits of the two next are {gap:.3g} apart (largest: {logits.max():.3g})"


@torch.no_grad()
def greedy(
    target: PreTrainedModel, prompt: Tensor, max_new_tokens: int, eos_token_id: int | Collection[int] | None
) -> list[int]:
    """Generate with the target alone, one token at a time, as `speculate` does. prompt: int64[n]."""
    past, tokens = DynamicCache(config=target.config), prompt
    output: list[int] = []
    ends = ids_of(eos_token_id)
    while len(output) < max_new_tokens and (not output or output[-1] not in ends):
        logits = target(input_ids=tokens[None], past_key_values=past, logits_to_keep=1).logits
        tokens = logits[0, -1:].argmax(-1)
        output.append(int(tokens))
    return output
