"""Tiny byte-level models for engines: a random Llama with a tokenizer, random heads, heads that know texts by heart."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peagle_core.checkpoint import save_drafter
from peagle_core.cod import sample_elements
from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.target import run_target, target_head
from peagle_core.training import Batch, loss_and_backward

VOCAB = 260  # 256 bytes, bos, eos, mask, pad
CONTEXT = 512
AUX_IDS = (1, 3, 6)  # not SGLang's default, so that a fallback to it would show


def save_target(directory: Path, num_layers: int = 8, **changes) -> None:
    """A random Llama over bytes, sharp enough that float noise does not decide its argmax; changes: of its config."""
    torch.manual_seed(1)
    vocabulary = {byte: i for i, byte in enumerate(sorted(ByteLevel.alphabet()))}
    for name in ("<|bos|>", "<|eos|>", "<|mask|>", "<|pad|>"):
        vocabulary[name] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>"
    ).save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=num_layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=256, eos_token_id=257, pad_token_id=259,
        tie_word_embeddings=False, initializer_range=0.2, **changes,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)


def drafter_config(**changes) -> PEagleConfig:
    shape = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "mask_token_id": 258, "aux_layer_ids": AUX_IDS,
        "num_depths": 5, "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    return PEagleConfig(**{**shape, **changes})


def save_random_head(directory: Path, **changes) -> PEagleDrafter:
    torch.manual_seed(2)
    drafter = PEagleDrafter(drafter_config(**changes))
    save_drafter(drafter, directory, torch.float32)
    return drafter


def overfit_head(
    directory: Path, target_dir: Path, prompts: list[list[int]], length: int, num_depths: int = 5, **changes
) -> None:
    """A head that knows the target's greedy continuations of the prompts by heart; changes: of its config."""
    torch.manual_seed(3)
    target = LlamaForCausalLM.from_pretrained(target_dir)
    config = drafter_config(num_depths=num_depths, **changes)
    batches = [greedy_batch(target, prompt, length, config.aux_layer_ids) for prompt in prompts]
    drafter = fresh_drafter(config, target, batches)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=120, pct_start=0.1)
    for _ in range(120):
        for batch in batches:
            elements = sample_elements(batch.loss_mask, batch.doc_ids, num_depths, 1.0)
            loss_and_backward(drafter, batch, elements, target_head=target_head(target), loss="ce")
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    save_drafter(drafter, directory, torch.float32)


def fresh_drafter(config: PEagleConfig, target: LlamaForCausalLM, batches: list[Batch]) -> PEagleDrafter:
    """Embedding and head copied from the target; a draft vocabulary of the texts' most frequent tokens."""
    drafter = PEagleDrafter(config)
    counts = torch.cat([batch.input_ids[batch.loss_mask] for batch in batches]).bincount(minlength=config.vocab_size)
    kept = counts.argsort(descending=True, stable=True)[: config.draft_vocab_size].sort().values
    drafter.d2t.copy_(kept - torch.arange(len(kept)))
    drafter.embed_tokens.weight.data.copy_(target.get_input_embeddings().weight)
    drafter.lm_head.weight.data.copy_(target.get_output_embeddings().weight[kept])
    return drafter


@torch.no_grad()
def greedy_batch(target: LlamaForCausalLM, prompt: list[int], length: int, aux_layer_ids: tuple[int, ...]) -> Batch:
    """The prompt and `length` tokens of the target's continuation of it."""
    target.generation_config.eos_token_id = None  # as the server's ignore_eos: the end token is a token like any other
    ids = target.generate(torch.tensor([prompt]), max_new_tokens=length, do_sample=False)[0]
    output, aux = run_target(target, ids[None], aux_layer_ids)
    generated = torch.arange(len(ids)) >= len(prompt)
    return Batch(ids, aux[0], output.hidden_states[-1][0], generated, torch.zeros_like(ids))
