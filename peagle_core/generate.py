"""The reference drafter loop: one drafter pass and one target pass per step, over a transformers target.

Rows of a drafter pass, with known tokens s_0..s_n (the target has not processed s_n yet) and states g_0..g_{n-1}:
real rows i (token s_{i+1}, state g_i, position i) for what the drafter has not seen, then K-1 mask rows at positions
n, n+1, ...; the last real row gives draft 1, mask row j gives draft j+1. Plain causal attention over cached keys. It is
the layout real vLLM runs and the SGLang worker uses; both are compared with this file, draft by draft.
With a correction the drafts are then chosen one after the other, each by those before it, without another pass.

EAGLE-3 heads draft one token after the other: instead of mask rows, a row per draft that reads the draft before it and
the drafter's own last state.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from peagle_core.attention.base import expand_kv
from peagle_core.drafter import PEagleDrafter
from peagle_core.end_ids import ids_of
from peagle_core.errors import InputError
from peagle_core.target import run_target
from peagle_core.told import ToldWhileDrafting, told_of_chain
from peagle_core.verify import verify_chain


@dataclass
class Speculation:
    """output_ids: the generated tokens; accept_lengths: tokens per step, bonus included; draft_tokens: K per step."""

    output_ids: list[int] = field(default_factory=list)
    accept_lengths: list[int] = field(default_factory=list)
    draft_tokens: list[list[int]] = field(default_factory=list)

    @property
    def mean_accept_length(self) -> float:
        return sum(self.accept_lengths) / max(1, len(self.accept_lengths))


class DraftCache:
    """Keys and values of the drafter's real rows, per layer; mask rows are appended during a pass and dropped again."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend causally over cached and new rows. q: [m,h,D]; k, v: [m,hk,D] -> [m,h,D]."""
        if layer in self.keys:
            k, v = torch.cat([self.keys[layer], k]), torch.cat([self.values[layer], v])
        self.keys[layer], self.values[layer] = k, v
        rows, total = q.shape[0], k.shape[0]
        mask = torch.ones(rows, total, dtype=torch.bool, device=q.device).tril(total - rows)
        q, k, v = (x.transpose(0, 1) for x in (q, expand_kv(k, q.shape[1]), expand_kv(v, q.shape[1])))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)

    def keep(self, rows: int) -> None:
        """Forget everything after the first `rows` rows: the mask rows were scratch."""
        for store in (self.keys, self.values):
            for layer in store:
                store[layer] = store[layer][:rows]


@torch.no_grad()
def draft_states(
    drafter: PEagleDrafter, cache: DraftCache, tokens: Tensor, aux: Tensor, num_draft_tokens: int, first_position: int
) -> Tensor:
    """Run one drafter pass, m new real rows and K-1 mask rows; return the drafts' states after the final norm, [K, H].

    The cache keeps only the real rows.
    tokens: int64[m], s_{i+1} of the new rows; aux: [m, 3H_t], their states g_i; first_position: i of the first.
    """
    real, rows = len(tokens), len(tokens) + num_draft_tokens - 1
    index = torch.arange(rows, device=tokens.device)
    depth = (index - real + 1).clamp(min=0)
    embed, fused = drafter.input_rows(tokens, aux, depth > 0, index - depth, depth)
    hidden = drafter(embed, fused, first_position + index, cache.attend)
    cache.keep(first_position + real)
    return drafter.norm(hidden[real - 1 :])


@torch.no_grad()
def choose_drafts(drafter: PEagleDrafter, states: Tensor, text: Tensor) -> Tensor:
    """Return the drafts of one pass, `drafter.chosen` of each row: int64[K] ids of the target's vocabulary.

    With a correction a row after the other, for each is corrected by the drafts before it. states: [K, H] of
    `draft_states`; text: int64[n + 1], all tokens before draft 1.
    """
    logits = drafter.corrected_logits(states, None)
    if drafter.correction is None:
        return drafter.chosen(logits, None)
    chain, drafts = ToldWhileDrafting(text), []
    for of_pass, row in zip(logits, states, strict=True):
        told = drafter.read(chain())
        drafts.append(drafter.chosen(drafter.correction(of_pass, row, told), told))
        chain.follow(drafts[-1])
    return torch.stack(drafts)


@torch.no_grad()
def chain_logits(drafter: PEagleDrafter, states: Tensor, text: Tensor, drafts: Tensor) -> Tensor:
    """Return the logits that the drafts of one pass were chosen from, [K, draft_vocab], whatever these drafts are.

    states, text: as in `choose_drafts`; drafts: int64[K].
    """
    return drafter.corrected_logits(states, _told_of(text, drafts))


@torch.no_grad()
def drafts_of(drafter: PEagleDrafter, logits: Tensor, text: Tensor, drafts: Tensor) -> Tensor:
    """Return the drafts that follow from the logits of a pass, int64[..., K], each behind those of `drafts` before it.

    logits: [..., K, draft_vocab], of `chain_logits` or a server; text, drafts: as there.
    """
    return drafter.chosen(logits, None if drafter.correction is None else drafter.read(_told_of(text, drafts)))


def _told_of(text: Tensor, drafts: Tensor) -> Tensor:
    """Return what the rows that these drafts come from are told, int64[K, TOLD]."""
    return told_of_chain(text, torch.cat([text[-1:], drafts[:-1]]))


@torch.no_grad()
def draft_autoregressively(
    drafter: PEagleDrafter, cache: DraftCache, tokens: Tensor, aux: Tensor, num_draft_tokens: int, first_position: int
) -> Tensor:
    """Draft as EAGLE-3 does, K passes: the new real rows, then K-1 rows of one draft each.

    Each of those reads the draft before it and the state that chose it.
    That state is the last layer's output before the final norm, and no fc comes between. Arguments and
    first draft are those of `draft_states`. Returns int64[K] ids of the target's vocabulary; keeps only the real rows.
    """
    index = torch.arange(len(tokens), device=tokens.device)
    embed, state = drafter.input_rows(tokens, aux, torch.zeros_like(index, dtype=torch.bool), index)
    positions = first_position + index
    drafts: list[Tensor] = []
    while len(drafts) < num_draft_tokens:
        state = drafter(embed, state, positions, cache.attend)[-1:]
        drafts.append(drafter.target_ids(drafter.logits(state).argmax(-1)))
        embed, positions = drafter.embed_tokens(drafts[-1]), positions[-1:] + 1
    cache.keep(first_position + len(tokens))
    return torch.cat(drafts)


@torch.no_grad()
def speculate(
    target: PreTrainedModel,
    drafter: PEagleDrafter,
    input_ids: Tensor,
    num_draft_tokens: int,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    eos_token_id: int | Collection[int] | None = None,
    generator: torch.Generator | None = None,
    autoregressive: bool | None = None,
) -> Speculation:
    """Generate from one prompt with speculation; the output is the target's own (greedy, or its distribution).

    input_ids: int64[n], n >= 1; num_draft_tokens: K >= 1. The text ends after max_new_tokens or with the first of
    eos_token_id (none, one or several). Drafts are the drafter's argmax at any temperature. autoregressive: as EAGLE-3
    drafts, see `draft_autoregressively`; default: as the head was made. Raises InputError on an empty prompt, on K < 1,
    on a target without the drafter's aux layers, and where an EAGLE-3 head is to draft in parallel.
    """
    autoregressive = drafter.config.autoregressive if autoregressive is None else autoregressive
    if drafter.config.autoregressive and not autoregressive:
        raise InputError("an EAGLE-3 head has no mask rows, so it cannot draft in parallel")
    if num_draft_tokens < 1:
        raise InputError(f"num_draft_tokens (K) must be at least 1, found {num_draft_tokens}")
    if not len(input_ids):
        raise InputError("the prompt is empty; the drafter needs at least one token")
    aux_ids = drafter.config.aux_layer_ids_for(target.config.get_text_config().num_hidden_layers)
    ends = ids_of(eos_token_id)
    past, cache, result = DynamicCache(config=target.config), DraftCache(), Speculation()
    none = input_ids.new_empty(0)

    def step_target(tokens: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        output, aux = run_target(target, tokens[None], aux_ids, past_key_values=past, logits_to_keep=keep)
        return output.logits[0], aux[0].to(drafter.fc.weight.dtype)

    logits, aux = step_target(input_ids, 1)
    past.activate_past_recording()  # sliding-window layers keep what `crop` may have to bring back
    bonus = verify_chain(none, logits, temperature, generator=generator)[1]
    result.output_ids.append(bonus)
    tokens = torch.cat([input_ids[1:], input_ids.new_tensor([bonus])])
    seen = 0  # real rows in the drafter's cache
    ended = bonus in ends
    while len(result.output_ids) < max_new_tokens and not ended:
        if autoregressive:
            drafts = draft_autoregressively(drafter, cache, tokens, aux, num_draft_tokens, seen)
        else:
            states = draft_states(drafter, cache, tokens, aux, num_draft_tokens, seen)
            text = torch.cat([input_ids, input_ids.new_tensor(result.output_ids)])
            drafts = choose_drafts(drafter, states, text)
        seen += len(tokens)
        logits, aux = step_target(torch.cat([tokens[-1:], drafts]), num_draft_tokens + 1)
        accepted, bonus = verify_chain(drafts, logits, temperature, generator=generator)
        past.crop(accepted - num_draft_tokens)  # negative: drop the rejected rows from the end
        tokens = torch.cat([drafts[:accepted], drafts.new_tensor([bonus])])
        aux = aux[: accepted + 1]
        result.draft_tokens.append(drafts.tolist())
        result.accept_lengths.append(accepted + 1)
        result.output_ids += tokens.tolist()
        ended = not ends.isdisjoint(tokens.tolist())  # an accepted draft may be the end, too
    return _truncate(result, max_new_tokens, ends)


def _truncate(result: Speculation, max_new_tokens: int, ends: frozenset[int]) -> Speculation:
    """Cut what the last step generated past the limit or behind the first end token."""
    result.output_ids = result.output_ids[:max_new_tokens]
    length = next((i for i, token in enumerate(result.output_ids, start=1) if token in ends), None)
    result.output_ids = result.output_ids[:length]
    return result
