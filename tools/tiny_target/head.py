"""The tiny target's heads: the target's own greedy text as data, and the trainer run on it as a user would run it.

P-EAGLE and the baseline EAGLE-3 get the same rows in the same order, as many steps, one optimizer; layers, and what
each algorithm has as its own defaults, differ.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM

from peagle_core.atomic import new_directory
from peagle_core.errors import InputError
from tools.tiny_target.corpus import heldout_prompts, load_tokenizer, prompts
from tools.tiny_target.target import build_target
from trainer.config import load_config
from trainer.train.run import run_train

# Where each algorithm's head lies in its directory.
HEADS = {"peagle": "head", "eagle3": "eagle3-head"}


@dataclass(frozen=True)
class HeadRecipe:
    """Hold how the heads of the demo are trained.

    new_tokens: of each generation; settings: overrides of the trainer's configuration, for all heads; peagle, eagle3:
    for one alone. Learning rates: the best of 2e-3, 4e-3 and 8e-3 for each (docs/decisions.md).
    """

    train_prompts: int = 1536
    heldout_prompts: int = 16
    new_tokens: int = 128
    batch_size: int = 64
    settings: tuple[str, ...] = (
        "drafter.num_depths=8",
        "data.max_length=192",
        "data.row_length=768",
        "optim.rows_per_step=1",
        "optim.epochs=1",
        "optim.optimizer=muon",
        "optim.weight_decay=0.01",
        "checkpoint_every=100",
        "log_every=20",
        "head_dtype=float32",
        "eval.num_draft_tokens=[5]",
    )
    peagle: tuple[str, ...] = ("drafter.num_hidden_layers=2", "optim.lr=8e-3")
    eagle3: tuple[str, ...] = ("optim.lr=8e-3",)

    def settings_of(self, algorithm: str) -> list[str]:
        return [f"algorithm={algorithm}", *self.settings, *getattr(self, algorithm)]


def build_head(directory: str | Path, recipe: HeadRecipe = HeadRecipe(), algorithm: str = "peagle") -> Path:
    """Train and write `directory`/head (HEADS[algorithm]) unless it is there already; returns it.

    An interrupted training is resumed.
    """
    path = Path(directory) / HEADS[algorithm]
    if path.is_dir():
        return path
    generations = build_generations(directory, recipe)
    run_dir = Path(directory) / f"{path.name}-run"
    config = load_config(
        None,
        [
            f"target={build_target(directory)}",
            f"data.train={generations / 'train.jsonl'}",
            f"data.heldout={generations / 'heldout.jsonl'}",
            f"output_dir={run_dir}",
            f"eval.num_prompts={recipe.heldout_prompts}",
            f"eval.max_new_tokens={recipe.new_tokens}",
            *recipe.settings_of(algorithm),
        ],
    )
    stopped = run_train(config, resume=True)
    if stopped:
        raise InputError(f"the training of {path} was stopped by {stopped.name}; run the same command to continue it")
    with new_directory(path, existing="replace") as partial:
        shutil.copytree(run_dir / "head", partial, dirs_exist_ok=True)
    return path


def build_generations(directory: str | Path, recipe: HeadRecipe = HeadRecipe()) -> Path:
    """Write `directory`/generations/{train,heldout}.jsonl ({"input_ids", "loss_mask"}) unless they are there."""
    path = Path(directory) / "generations"
    if path.is_dir():
        return path
    target = LlamaForCausalLM.from_pretrained(build_target(directory)).eval()
    eos = load_tokenizer(directory).eos_token_id
    with new_directory(path, existing="replace") as partial:
        sides = {
            "heldout": heldout_prompts(directory, recipe.heldout_prompts),
            "train": prompts(directory, "train", recipe.train_prompts),
        }
        for side, starts in sides.items():
            documents = continue_greedily(target, starts, recipe, eos)
            (partial / f"{side}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    return path


@torch.inference_mode()
def continue_greedily(
    target: LlamaForCausalLM, starts: list[list[int]], recipe: HeadRecipe, eos_token_id: int
) -> list[dict[str, list[int]]]:
    """Let the target continue prompts of one length greedily.

    starts: the prompts. Each comes back with its continuation, up to and including the end token.
    """
    documents = []
    bar = tqdm(total=len(starts), desc="generations", unit="prompt")
    for batch in torch.tensor(starts).split(recipe.batch_size):
        output: Any = target.generate(  # type: ignore[misc]
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=recipe.new_tokens,
            do_sample=False,
            eos_token_id=eos_token_id,
            pad_token_id=eos_token_id,
        )
        for row in output.tolist():
            prompt, answer = row[: batch.shape[1]], row[batch.shape[1] :]
            if eos_token_id in answer:
                answer = answer[: answer.index(eos_token_id) + 1]
            documents.append({"input_ids": prompt + answer, "loss_mask": [0] * len(prompt) + [1] * len(answer)})
        bar.update(len(batch))
    bar.close()
    return documents
