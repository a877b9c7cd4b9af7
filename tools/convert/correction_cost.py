"""What leaving a correction out costs: the drafter loop on a few prompts, with it and without."""

from __future__ import annotations

import math

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from peagle_core.config_formats import DEFAULT_SPECULATIVE_TOKENS
from peagle_core.errors import first_line
from peagle_core.generate import speculate
from tools.convert.check import drafter_of
from tools.heads.head import Head, in_bytes
from tools.heads.target import Target
from tools.heads.texts import short_texts
from trainer.sizing.sizes import device_memory
from trainer.target.load import LOAD_ERRORS

NEW_TOKENS = 64


@torch.no_grad()
def correction_cost(source: Head, target: Target) -> str:
    """Return what the loop accepts with the source's correction and without it, in one sentence.

    The target runs in float32 on the CPU. One that takes more than half of the machine's memory, or whose directory has
    no weights, is not measured; the sentence says so.
    """
    needed = 4 * sum(math.prod(tensor.shape) for tensor in target.tensors)
    memory = device_memory(torch.device("cpu"))
    if not needed or needed > memory / 2:
        why = f"{in_bytes(needed)} in float32, this machine {in_bytes(memory)}" if needed else "no weights"
        return f"what that costs was not measured: {target.directory} has {why}"
    try:
        model = AutoModelForCausalLM.from_pretrained(target.directory, dtype=torch.float32, local_files_only=True)
    except LOAD_ERRORS as error:
        return f"what that costs was not measured: {target.directory} cannot be loaded ({first_line(error)})"
    model, drafter = model.eval(), drafter_of(source, target).eval()
    k = drafter.config.num_depths or DEFAULT_SPECULATIVE_TOKENS
    prompts = [torch.tensor(ids) for ids in short_texts(target)]
    lengths: list[float] = []
    with tqdm(total=2 * len(prompts), desc="what the correction is worth", unit="prompt", leave=False) as bar:
        for correction in (drafter.correction, None):
            drafter.correction = correction
            steps = []
            for prompt in prompts:
                steps += speculate(model, drafter, prompt, k, NEW_TOKENS).accept_lengths
                bar.update()
            lengths.append(sum(steps) / len(steps))
    return (
        f"reference loop, K = {k}, {len(prompts)} short texts x {NEW_TOKENS} tokens: acceptance length "
        f"{lengths[0]:.2f} with the correction, {lengths[1]:.2f} without"
    )
