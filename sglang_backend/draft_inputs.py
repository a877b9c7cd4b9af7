"""Which rows the drafter reads: after verification and after prefill, in torch (the reference layout).

A request's rows stand at consecutive positions: its new real rows, then K-1 mask rows. The last real row gives draft 1,
mask row j gives draft j+1. Valid rows come first and padding last, so plain causal attention is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sglang.srt.speculative.eagle_info import EagleDraftExtendInput
from torch import Tensor

PADDING_SLOT = 0  # SGLang keeps slot 0 of every KV pool as the sink of padded rows


@dataclass
class DraftExtendInput(EagleDraftExtendInput):
    """What our model reads beside ids and positions. hidden_states: [T, 3H_t], the target's aux states.

    source: int64[rows], the target state each row reads, T for mask rows; select_index: int64[bs * K], see DraftRows.
    """

    source: Tensor | None = None


@dataclass(frozen=True)
class DraftRows:
    """One drafter pass over `rows` rows of bs requests.

    input_ids: int64[rows]; source: int64[rows] (see DraftExtendInput); select_index: int64[bs * K], the rows whose
    logits are drafts 1..K; valid: bool[rows], False for padding, whose KV must go to the padding slot.
    """

    input_ids: Tensor
    source: Tensor
    select_index: Tensor
    valid: Tensor


def rows_after_verify(
    next_token_ids: Tensor, accept_lens: Tensor, num_draft_tokens: int, mask_token_id: int
) -> DraftRows:
    """2K rows per request: accept_lens[i] real ones, K-1 masks, padding.

    next_token_ids: int64[bs * (K+1)], the target's choice after each verified row (the last accepted one is the bonus
    token); accept_lens: int[bs], accepted drafts + 1. Row r of request i is at position seq_lens[i] + r. No host sync.
    """
    k, width = num_draft_tokens, 2 * num_draft_tokens
    bs = accept_lens.shape[0]
    row = torch.arange(width, device=accept_lens.device)
    request = torch.arange(bs, device=accept_lens.device)[:, None]
    accepted = accept_lens[:, None].long()
    real = row < accepted
    verified = request * (k + 1) + row.clamp(max=k)
    input_ids = torch.where(real, next_token_ids.long()[verified], mask_token_id)
    source = torch.where(real, verified, bs * (k + 1))
    select = request * width + accepted - 1 + row[:k]
    valid = row < accepted + k - 1
    return DraftRows(input_ids.flatten(), source.flatten(), select.flatten(), valid.flatten())


def rows_after_prefill(
    input_ids: Tensor, tail_tokens: Tensor, extend_lens: list[int], num_masks: list[int], num_draft_tokens: int,
    mask_token_id: int,
) -> DraftRows:  # fmt: skip
    """Per request its extend_lens[i] prompt rows, shifted by one, then num_masks[i] mask rows (K-1, or 0).

    input_ids: int64[sum(extend_lens)], the prompt tokens of this pass; tail_tokens: int64[bs], what follows the last
    of them: the first sampled token, or the next prompt token when the prompt continues in another chunk. Without
    masks all K drafts are read off the last real row, so only the first means something.
    """
    device = input_ids.device
    ids, source, select = [], [], []
    start = first_row = 0
    total = input_ids.shape[0]
    for i, (length, masks) in enumerate(zip(extend_lens, num_masks, strict=True)):
        ids += [input_ids[start + 1 : start + length], tail_tokens[i : i + 1]]
        ids.append(input_ids.new_full((masks,), mask_token_id))
        source += [torch.arange(start, start + length), torch.full((masks,), total)]
        last = first_row + length - 1
        select.append(last + torch.arange(num_draft_tokens).clamp(max=masks))
        start += length
        first_row += length + masks
    rows = torch.cat(ids)
    return DraftRows(rows, torch.cat(source).to(device), torch.cat(select).to(device), torch.ones_like(rows).bool())
