"""Measure what drafting costs in each configuration: K drafts for one request, all configurations in turns.

By the reference loop in PyTorch, on one thread, over weights as they are drawn: time does not depend on them. It says
what one configuration costs beside another; a server's layers and graphs make less of both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm
from transformers import AutoConfig

from peagle_core.drafter import PEagleDrafter
from peagle_core.generate import DraftCache, choose_drafts, draft_autoregressively, draft_states
from tools.ablations.schedule import Suite
from trainer.config import load_config
from trainer.new_drafter import drafter_config

CONTEXT = 256  # tokens that the drafter has seen
NEW = 2  # rows that each pass reads anew, about what a step accepts
ROUNDS = 40


def drafting_ms(suite: Suite, names: list[str]) -> dict[str, float]:
    """Return the milliseconds that K drafts take of each configuration, K that of the measured acceptance: medians."""
    with one_thread():
        calls = {name: _drafting(suite, name) for name in names}
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in tqdm(range(ROUNDS), desc="cost of drafting", unit="round"):
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(of_name[ROUNDS // 4 :]) for name, of_name in times.items()}  # the first warm up


def _drafting(suite: Suite, name: str) -> Callable[[], object]:
    """Return what drafts K tokens behind `CONTEXT` others with a configuration's drafter."""
    config = load_config(suite.base, suite.overrides(name, 0))
    target = AutoConfig.from_pretrained(config.target)
    mask = None if config.algorithm == "eagle3" else 0
    shape = drafter_config(config.drafter, config.target, target, mask, target.get_text_config().vocab_size)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    drafter, k = PEagleDrafter(shape).to(dtype).eval(), config.eval.num_draft_tokens[0]
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(shape.vocab_size, (CONTEXT + NEW,), generator=rng)
    aux = torch.randn(CONTEXT + NEW, shape.fused_size, generator=rng).to(dtype)
    text, cache = torch.cat([tokens[:1], tokens]), DraftCache()
    draft_pass = draft_autoregressively if shape.autoregressive else draft_states
    draft_pass(drafter, cache, tokens[:CONTEXT], aux[:CONTEXT], k, 0)

    def draft() -> None:
        found = draft_pass(drafter, cache, tokens[CONTEXT:], aux[CONTEXT:], k, CONTEXT)
        if not shape.autoregressive:
            choose_drafts(drafter, found, text)
        cache.keep(CONTEXT)

    return draft


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
