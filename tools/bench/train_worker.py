"""Run our own training steps on request.

Protocol and work are those of tools/judges/workers/speculators_steps.py. A step counts everything: drawing the
elements, the masks or layouts, forward, loss, backward, metrics.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from peagle_core.cod import sample_elements
from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.training import Batch, loss_and_backward


def memory_mib(field: str) -> float:
    """Return VmHWM (peak) or VmRSS (now) of this process in MiB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def build(options: dict[str, Any]) -> tuple[PEagleDrafter, Batch, torch.Tensor]:
    """Make a random drafter with a frozen lm_head, a batch and a random target head.

    The batch is one fully supervised document of `length` slots.
    """
    length, hidden, vocab = (options[key] for key in ("length", "hidden", "vocab"))
    heads = hidden // options["head_dim"]
    torch.manual_seed(0)
    config = PEagleConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=options["head_dim"],
        mask_token_id=0,
        num_depths=options["num_depths"],
        max_position_embeddings=2 * length,
    )
    drafter = PEagleDrafter(config)
    drafter.lm_head.weight.requires_grad_(False)
    tokens = length + 1
    batch = Batch(
        torch.randint(0, vocab, (tokens,)),
        torch.randn(tokens, 3 * hidden),
        torch.randn(tokens, hidden),
        torch.ones(tokens, dtype=torch.bool),
        torch.zeros(tokens, dtype=torch.int64),
    )
    return drafter, batch, torch.randn(vocab, hidden) * 0.02


def main() -> None:
    options = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    print(json.dumps({"baseline_mib": memory_mib("VmRSS")}), flush=True)
    drafter, batch, target_head = build(options)
    for line in sys.stdin:
        generator = torch.Generator().manual_seed(int(line))
        drafter.zero_grad(set_to_none=True)
        start = time.perf_counter()
        elements = sample_elements(
            batch.loss_mask,
            batch.doc_ids,
            options["num_depths"],
            options["retention"],
            options["retention_min"],
            generator,
        )
        counts = loss_and_backward(drafter, batch, elements, target_head=target_head, **options["step"])
        seconds = time.perf_counter() - start
        result = {
            "seconds": seconds,
            "peak_mib": memory_mib("VmHWM"),
            "loss": counts.loss,
            "elements": len(elements),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
