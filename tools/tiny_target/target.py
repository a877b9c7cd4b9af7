"""The tiny target: a small Llama trained from scratch on the standard library's source (`build_target`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_scheduler

from peagle_core.atomic import new_directory
from tools.tiny_target.corpus import load_tokenizer, read_documents


@dataclass(frozen=True)
class TargetRecipe:
    """Shape and training of the target. window: tokens of one training excerpt (BOS included)."""

    hidden_size: int = 128
    num_layers: int = 8
    intermediate_size: int = 384
    num_heads: int = 4
    num_kv_heads: int = 2
    max_positions: int = 1024
    window: int = 256
    windows_per_step: int = 8
    steps: int = 400
    matrix_lr: float = 0.02
    other_lr: float = 4e-3
    seed: int = 0


def build_target(directory: str | Path, recipe: TargetRecipe = TargetRecipe()) -> Path:
    """Train and write `directory`/target (fp32, tokenizer included) unless it is there already; returns it."""
    path = Path(directory) / "target"
    if path.is_dir():
        return path
    tokenizer = load_tokenizer(directory)
    model = train_target(windows(tokenizer, read_documents(directory, "train"), recipe.window), tokenizer, recipe)
    with new_directory(path, existing="replace") as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return path


def windows(tokenizer: PreTrainedTokenizerFast, texts: list[str], window: int) -> Tensor:
    """Cut the documents into excerpts, int64[W, window].

    Every excerpt starts with BOS, as prompts do; a document's last one has its end and EOS.
    A document shorter than one window is left out.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = []
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        ids = [*ids, eos]
        starts = list(range(0, len(ids) - window + 1, window - 1))
        rows += [[bos, *ids[i : i + window - 1]] for i in starts]
    return torch.tensor(rows)


def train_target(data: Tensor, tokenizer: PreTrainedTokenizerFast, recipe: TargetRecipe) -> LlamaForCausalLM:
    """Train on next tokens, with linear decay. data: int64[W, window]."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.num_layers,
            num_attention_heads=recipe.num_heads,
            num_key_value_heads=recipe.num_kv_heads,
            max_position_embeddings=recipe.max_positions,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
    )
    optimizers = _optimizers(model, recipe)
    schedules = [get_scheduler("linear", o, recipe.steps // 40, recipe.steps) for o in optimizers]
    bar = tqdm(_batches(data, recipe), total=recipe.steps, desc="target", unit="step")
    for batch in bar:
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def _optimizers(model: LlamaForCausalLM, recipe: TargetRecipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices (it needs half of AdamW's steps here), AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _batches(data: Tensor, recipe: TargetRecipe) -> Iterator[Tensor]:
    """Yield `steps` batches, in shuffled passes over the data."""
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(recipe.steps):
        while len(order) < recipe.windows_per_step:
            order = torch.cat([order, torch.randperm(len(data), generator=generator)])
        yield data[order[: recipe.windows_per_step]]
        order = order[recipe.windows_per_step :]
