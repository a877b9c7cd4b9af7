"""Show P-EAGLE on one screen: elements, the mask as a picture, a training step, a speculation. Seconds on a CPU.

    python examples/algorithm.py

Everything that trains or serves here is `peagle_core`; the target is a Llama with random weights, so small that its
text means nothing. docs/elements.md explains the words, docs/architecture.md where the same steps are in the trainer
and in the SGLang plugin.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peagle_core.cod import sample_elements
from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import supervised
from peagle_core.generate import speculate
from peagle_core.mask import dense_mask
from peagle_core.target import pick_states, target_head
from peagle_core.training import Batch, loss_and_backward

torch.manual_seed(0)
torch.set_num_threads(1)
VOCAB, WIDTH, DEPTHS, PROMPT, TOKENS = 64, 32, 4, 4, 48  # DEPTHS is K, the drafts per step
SIZES = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}

# 1. A target model, and a text that it wrote: a drafter learns what this very target would say next.
special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "initializer_range": 0.3}
target = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, num_hidden_layers=8, **SIZES, **special)).eval()
prompt = torch.randint(0, VOCAB - 1, (PROMPT,))
text = target.generate(prompt[None], max_length=TOKENS, do_sample=False)[0]

# 2. The drafter: an EAGLE-3 head, reading three hidden states of the target, with a learned mask token and mask state.
config = PEagleConfig(
    vocab_size=VOCAB, num_hidden_layers=2, mask_token_id=VOCAB - 1, aux_layer_ids=(2, 4, 5), num_depths=DEPTHS, **SIZES
)
drafter = PEagleDrafter(config)

# 3. Elements (anchor, depth): depth 0 are the real rows, depth d the draft d rows after its anchor. COD drops some.
loss_mask, doc_ids = torch.arange(TOKENS) >= PROMPT, torch.zeros(TOKENS, dtype=torch.int64)
elements = sample_elements(loss_mask, doc_ids, DEPTHS, retention=0.7, generator=torch.Generator().manual_seed(0))

# 4. Who sees whom, in order of anchors: a real row is seen by all after it, a mask row by its own chain alone.
few = elements.order("anchor")[:12]
names = [f"{a},{d}" for a, d in zip(few.anchor.tolist(), few.depth.tolist(), strict=True)]
print(f"{len(elements)} elements, here the first {len(few)}: x = may look at it, * = counts in the loss\n")
print("        " + " ".join(names))
for name, counts, row in zip(names, supervised(few, loss_mask, doc_ids), dense_mask(few, doc_ids), strict=True):
    print(" *"[counts] + f" ({name})" + "".join("   x" if sees else "   ." for sees in row))

# 5. A training step: the target's hidden states, one pass over all elements, loss and gradients; then many of them.
with torch.no_grad():
    states = target(text[None], output_hidden_states=True).hidden_states
aux, final = pick_states(states, config.aux_layer_ids)
batch = Batch(text, aux[0], final[0], loss_mask, doc_ids)
optimizer = torch.optim.AdamW(drafter.parameters(), lr=5e-3)


def train_step() -> float:
    """Take one step and return its loss per charged element, a KL divergence in nats."""
    metrics = loss_and_backward(drafter, batch, elements, target_head=target_head(target))
    optimizer.step()
    optimizer.zero_grad()
    return float(metrics.loss)


# 6. Speculation: one drafter pass gives K drafts, one target pass verifies them. The output is the target's, always.
for steps in (1, 99):
    loss = [train_step() for _ in range(steps)][-1]
    result = speculate(target, drafter, prompt, num_draft_tokens=DEPTHS, max_new_tokens=TOKENS - PROMPT)
    assert result.output_ids == text[PROMPT:].tolist()
    accepted = f"{result.mean_accept_length:.2f} tokens per target pass (at most {DEPTHS + 1})"
    print(f"\n+{steps} steps: loss {loss:.3f}, {accepted}")
