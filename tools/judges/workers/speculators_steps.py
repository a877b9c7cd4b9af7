"""Run training steps of speculators' P-EAGLE core on request, in speculators' own environment.

Imports nothing of ours. Protocol: arguments as one JSON object; then for every line "seed" on standard input one JSON
line {seconds, elements, peak_mib, loss} on standard output. The first line out is {baseline_mib}, memory after imports.
Random weights and states, one document, KL over the draft vocabulary, lm_head frozen: as in
`tools.bench.train_worker`. Slot 0 is left unsupervised, because its sampler would otherwise emit anchor -1.
"""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from speculators import SpeculatorsConfig, VerifierConfig  # noqa: E402
from speculators.losses import resolve_loss_config  # noqa: E402
from speculators.models.peagle import core  # noqa: E402
from speculators.models.peagle.config import PEagleSpeculatorConfig  # noqa: E402
from speculators.proposals.greedy import GreedyTokenProposalConfig  # noqa: E402
from transformers import LlamaConfig  # noqa: E402


def memory_mib(field: str) -> float:
    """Return VmHWM (peak) or VmRSS (now) of this process in MiB."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def main() -> None:
    options = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    print(json.dumps({"baseline_mib": memory_mib("VmRSS")}), flush=True)
    length, hidden, vocab, num_depths = (options[key] for key in ("length", "hidden", "vocab", "num_depths"))
    heads = hidden // options["head_dim"]
    layer = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=options["head_dim"],
        max_position_embeddings=2 * length,
        tie_word_embeddings=False,
    )
    layer._attn_implementation = "sdpa"  # its default, flex, has no backward pass on CPUs
    verifier = VerifierConfig(name_or_path=None, architectures=["LlamaForCausalLM"])
    proposal = GreedyTokenProposalConfig(speculative_tokens=num_depths)
    config = PEagleSpeculatorConfig(
        transformer_layer_config=layer,
        draft_vocab_size=vocab,
        norm_before_residual=False,
        mask_token_id=0,
        eagle_aux_hidden_state_layer_ids=[1, 2, 3],
        speculators_config=SpeculatorsConfig(
            algorithm="peagle", proposal_methods=[proposal], default_proposal_method="greedy", verifier=verifier
        ),
    )
    torch.manual_seed(0)
    model = core.PEagleDraftModel(config)
    for parameter in model.parameters():  # embeddings and heads start as NaN by design
        if parameter.isnan().any():
            torch.nn.init.normal_(parameter, std=0.02)
    loss_mask = torch.ones(1, length)
    loss_mask[0, 0] = 0
    batch = {
        "hidden_states": torch.randn(1, length, 3 * hidden),
        "input_ids": torch.randint(0, vocab, (1, length)),
        "document_ids": torch.zeros(1, length, dtype=torch.int64),
        "loss_mask": loss_mask,
        "verifier_last_hidden_states": torch.randn(1, length, hidden),
    }
    choices = {
        "num_depths": num_depths,
        "down_sample_ratio": options["retention"],
        "down_sample_ratio_min": options["retention_min"],
        "max_anchors": None,
        "loss_config": resolve_loss_config("kl_div", "eager"),
    }
    for line in sys.stdin:
        torch.manual_seed(int(line))
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        _, loss, _ = model(**batch, **choices)
        loss.backward()
        seconds = time.perf_counter() - start
        print(
            json.dumps({"seconds": seconds, "peak_mib": memory_mib("VmHWM"), "loss": loss.item(), "elements": None}),
            flush=True,
        )


if __name__ == "__main__":
    main()
