"""The real SGLang server over HTTP, on the CPU reference platform, with tiny models made on the spot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
from tools import server
from tools.server import Server, cpu_environment, free_port, launch_command

VOCAB = 260  # 256 bytes, bos, eos, mask, pad
CONTEXT = 512
AUX_IDS = (1, 3, 6)  # not SGLang's default, so that a fallback to it would show


def save_target(directory: Path, num_layers: int = 8) -> None:
    """A random Llama over bytes, sharp enough that float noise does not decide its argmax."""
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
        tie_word_embeddings=False, initializer_range=0.2,
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


def overfit_head(directory: Path, target_dir: Path, prompts: list[list[int]], length: int, num_depths: int = 5) -> None:
    """A head that knows the target's greedy continuations of the prompts by heart."""
    torch.manual_seed(3)
    target = LlamaForCausalLM.from_pretrained(target_dir)
    drafter = PEagleDrafter(drafter_config(num_depths=num_depths))
    drafter.embed_tokens.weight.data.copy_(target.get_input_embeddings().weight)
    drafter.lm_head.weight.data.copy_(target.get_output_embeddings().weight)
    batches = [greedy_batch(target, prompt, length) for prompt in prompts]
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


@torch.no_grad()
def greedy_batch(target: LlamaForCausalLM, prompt: list[int], length: int) -> Batch:
    target.generation_config.eos_token_id = None  # as the server's ignore_eos: the end token is a token like any other
    ids = target.generate(torch.tensor([prompt]), max_new_tokens=length, do_sample=False)[0]
    output, aux = run_target(target, ids[None], AUX_IDS)
    generated = torch.arange(len(ids)) >= len(prompt)
    return Batch(ids, aux[0], output.hidden_states[-1][0], generated, torch.zeros_like(ids))


SERVE = ("--dtype", "float32", "--max-total-tokens", "4096", "--log-level", "warning", "--sleep-on-idle")


@contextmanager
def serve(target: Path, log: Path, *arguments: str, **extra_environment: str) -> Iterator[Server]:
    with server.serve(target, log, *SERVE, *arguments, environment=cpu_environment(**extra_environment)) as running:
        yield running


def refuse(target: Path, *arguments: str) -> tuple[int, str]:
    """Start a server that should refuse to start: (exit code, what it said)."""
    command = launch_command(target, free_port(), *SERVE, *arguments)
    done = subprocess.run(command, env=cpu_environment(), capture_output=True, text=True, timeout=180)
    return done.returncode, done.stderr


def refusals(arguments: list[list[str]]) -> list[str | None]:
    """What the launcher's argument check says of each command line (None: nothing), in one process that serves none."""
    check = """
import json, sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import prepare_server_args
from peagle_core.errors import InputError
for arguments in json.load(sys.stdin):
    try:
        prepare_server_args(arguments).resolve_once()
        print("REFUSAL", json.dumps(None))
    except InputError as error:
        print("REFUSAL", json.dumps(str(error)))
"""
    done = subprocess.run(
        [sys.executable, "-c", check],
        env=cpu_environment(), input=json.dumps(arguments), capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("REFUSAL ")]
    assert len(lines) == len(arguments), done.stderr[-3000:]
    return [json.loads(line.removeprefix("REFUSAL ")) for line in lines]


def peagle(head: Path, num_draft_tokens: int | None = None) -> list[str]:
    arguments = ["--speculative-algorithm", "PEAGLE", "--speculative-draft-model-path", str(head)]
    return arguments + ([] if num_draft_tokens is None else ["--speculative-num-steps", str(num_draft_tokens)])


def write_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
