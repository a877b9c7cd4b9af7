"""A tokenizer with a chat template, the settings of a run that takes a second, and what is looked at afterwards."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from pytest import MonkeyPatch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from trainer.config import RunConfig
from trainer.train import loop
from trainer.train.assemble import Run

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|reserved_0|>"]
VOCAB_SIZE = 288  # 5 special tokens, 256 bytes, some merges


def make_tokenizer(**changes: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's trimmed offsets, as most targets have."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ["def f(x):\n    return x + 1\n\n\nhello there, what is the answer? The answer is 42.\n"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    begin = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    raw.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begin])
    options = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
    return PreTrainedTokenizerFast(tokenizer_object=raw, extra_special_tokens=SPECIAL[2:], **(options | changes))


def run_options(target_dir: Path, data_file: Path, output_dir: Path) -> list[str]:
    return [
        f"target={target_dir}",
        f"data.train={data_file}",
        f"output_dir={output_dir}",
        "data.max_length=64",
        "data.row_length=96",
        "drafter.num_hidden_layers=1",
        "drafter.num_depths=3",
        "optim.max_steps=6",
        "optim.rows_per_step=2",
        "optim.lr=1e-2",
        "eval.num_prompts=2",
        "eval.max_new_tokens=8",
        "eval.num_draft_tokens=[3]",
        "mode=flat",
        "checkpoint_every=2",
        "log_every=1",
        "head_dtype=float32",
        "device=cpu",
    ]


def signal_after_step(monkeypatch: MonkeyPatch, number: int) -> None:
    """SIGTERM to this process when optimizer step `number` is done."""
    step = loop.train_step

    def step_and_signal(run: Run) -> Any:
        result = step(run)
        if run.state.step == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(loop, "train_step", step_and_signal)


def changed(config: RunConfig, section: str | None = None, **values) -> RunConfig:
    """Return the configuration with other values, at the top or in one section."""
    if section:
        values = {section: getattr(config, section).model_copy(update=values)}
    return config.model_copy(update=values)


def stored(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a checkpoint, moments included."""
    return {name: t for path in checkpoint.glob("*.safetensors") for name, t in load_file(path).items()}


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(x, y), name
