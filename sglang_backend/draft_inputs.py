"""Which rows the drafter reads: after verification and after prefill, in torch (the reference layout).

A request's rows stand at consecutive positions: its new real rows, then K-1 mask rows. The last real row gives draft 1,
mask row j gives draft j+1. Valid rows come first and padding last, so plain causal attention is right. On a GPU the
decode step's rows come from sglang_backend.kernels, which write what the functions here write.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from sglang.srt.speculative.eagle_info import EagleDraftExtendInput
from sglang.srt.utils.common import async_h2d
from torch import Tensor

from sglang_backend.row_budget import drafter_rows, verified_rows

PADDING_KV_SLOT = 0  # SGLang keeps slot 0 of every KV pool as the sink of padded rows
MASK_ROW = -1  # the `source` of a row that reads no target state but mask_hidden


@dataclass
class DraftExtendInput(EagleDraftExtendInput):
    """What our model reads beside ids and positions. hidden_states: [T, 3H_t], the target's aux states.

    source: int64[rows], the target state each row reads, MASK_ROW for mask rows; select_index: see DraftRows.
    """

    source: Tensor | None = None


@dataclass(frozen=True)
class DraftRows:
    """One drafter pass over `rows` rows of bs requests.

    input_ids: int64[rows]; source: int64[rows] (see DraftExtendInput); select_index: int64[bs * K], the rows whose
    logits are drafts 1..K.
    """

    input_ids: Tensor
    source: Tensor
    select_index: Tensor


@dataclass(frozen=True)
class DecodeRows(DraftRows):
    """The 2K rows per request of a decode step.

    positions: int64[rows]; kv_slots: int64[rows], where each row's KV goes. Where drafts were rejected, and in all rows
    of a padded request, stands padding: mask tokens at position 0 whose KV goes to the padding KV slot.
    ends: int64[bs], the position behind each request's 2K rows, which is how many keys attention may read; owners:
    int64[bs], its row of req_to_token. A padded request ends at 2K in row 0.
    """

    positions: Tensor
    kv_slots: Tensor
    ends: Tensor
    owners: Tensor

    @classmethod
    def allocate(cls, bs: int, num_draft_tokens: int, device: torch.device | str) -> DecodeRows:
        return cls(
            *[torch.empty(n, dtype=torch.int64, device=device) for n in cls.sizes(bs, num_draft_tokens).values()]
        )

    @classmethod
    def sizes(cls, bs: int, num_draft_tokens: int) -> dict[str, int]:
        """Return how many elements each field has."""
        special = {"select_index": num_draft_tokens, "ends": 1, "owners": 1}
        return {f.name: bs * special.get(f.name, drafter_rows(num_draft_tokens)) for f in fields(cls)}

    def first(self, bs: int, num_draft_tokens: int) -> DecodeRows:
        """Return the rows of the first bs requests, as views."""
        return DecodeRows(*[getattr(self, name)[:n] for name, n in self.sizes(bs, num_draft_tokens).items()])


def rows_after_verify(
    next_token_ids: Tensor, accept_lens: Tensor, seq_lens: Tensor, req_pool_indices: Tensor, req_to_token: Tensor,
    num_draft_tokens: int, mask_token_id: int, num_verified: int, out: DecodeRows | None = None,
) -> DecodeRows:  # fmt: skip
    """Return 2K rows per request: accept_lens[i] real ones, K-1 masks, padding.

    No host synchronisation.
    num_verified: of the K drafts of a pass, how many the verification took, k <= K;
    next_token_ids: int[bs * (k+1)], the target's choice after each verified row (the last accepted one is the bonus
    token); accept_lens: int[bs], accepted drafts + 1; seq_lens, req_pool_indices: int[bs]; req_to_token: the KV slot
    of each position of each request. out: buffers to fill, for any number of requests; those past bs become padding.
    """
    if out is None:
        out = DecodeRows.allocate(accept_lens.shape[0], num_draft_tokens, accept_lens.device)
    fill = fill_rows
    if accept_lens.is_cuda:
        from sglang_backend.kernels.draft_rows import expand as fill
    fill(
        out, next_token_ids, accept_lens, seq_lens, req_pool_indices, req_to_token, num_draft_tokens, mask_token_id,
        num_verified,
    )  # fmt: skip
    return out


def fill_rows(
    out: DecodeRows, next_token_ids: Tensor, accept_lens: Tensor, seq_lens: Tensor, req_pool_indices: Tensor,
    req_to_token: Tensor, num_draft_tokens: int, mask_token_id: int, num_verified: int,
) -> None:  # fmt: skip
    """Compute `rows_after_verify` in torch, the reference of kernels.draft_rows.expand.

    Fills what out has room for.
    """
    k, width = num_draft_tokens, drafter_rows(num_draft_tokens)
    bs, table_width = -(-out.input_ids.numel() // width), req_to_token.shape[1]
    padded = (0, bs - accept_lens.shape[0])
    accepted, length, owner = (F.pad(x.long(), padded)[:, None] for x in (accept_lens, seq_lens, req_pool_indices))
    row = torch.arange(width, device=accept_lens.device)
    request = torch.arange(bs, device=accept_lens.device)[:, None]
    real = row < accepted
    used = (row < accepted + k - 1) & (accepted > 0)
    verified = request * verified_rows(num_verified) + row
    position = length + row
    token = next_token_ids.long()[verified.clamp(max=next_token_ids.shape[0] - 1)]
    kv_slot = req_to_token[owner, position.clamp(max=table_width - 1)].long()
    values = {
        "input_ids": torch.where(real, token, mask_token_id),
        "positions": torch.where(used, position, 0),
        "kv_slots": torch.where(used & (position < table_width), kv_slot, PADDING_KV_SLOT),
        "source": torch.where(real, verified, MASK_ROW),
        "select_index": request * width + (accepted - 1).clamp(min=0) + row[:k],
        "ends": length + width,
        "owners": owner,
    }
    for name, value in values.items():
        buffer = getattr(out, name)
        buffer.copy_(value.flatten()[: buffer.numel()])


def hidden_rows(states: Tensor, mask_state: Tensor, source: Tensor) -> Tensor:
    """Return the state each row reads, [rows, H].

    states: [T, H]; mask_state: [1, H], where `source` is MASK_ROW.
    """
    if states.is_cuda:
        from sglang_backend.kernels.draft_rows import read

        return read(states, mask_state, source, states.new_empty(source.shape[0], states.shape[1]))
    return torch.where((source >= 0)[:, None], states[source.clamp(min=0)], mask_state)


def rows_after_prefill(
    input_ids: Tensor, tail_tokens: Tensor, extend_lens: list[int], num_masks: list[int], num_draft_tokens: int,
    mask_token_id: int,
) -> DraftRows:  # fmt: skip
    """Return per request its extend_lens[i] prompt rows, shifted by one, then num_masks[i] mask rows (K-1, or 0).

    input_ids: int64[sum(extend_lens)], the prompt tokens of this pass; tail_tokens: int64[bs], what follows the last
    of them: the first sampled token, or the next prompt token when the prompt continues in another chunk. Without
    masks all K drafts are read off the last real row, so only the first means something.

    All lengths are known to the host, so the layout is made there and sent at once, for any number of requests.
    """
    real, masks = np.array(extend_lens), np.array(num_masks)
    total, bs = int(real.sum()), len(real)
    request, row = spans(real + masks)
    state = (np.cumsum(real) - real)[request] + row  # of the same prompt token
    is_mask, is_last = row >= real[request], row == real[request] - 1
    # Into the prompt tokens, the tail tokens behind them and one mask token behind those
    token = np.select([is_mask, is_last], [total + bs, total + request], state + 1)
    last = np.cumsum(real + masks) - masks - 1
    select = last[:, None] + np.minimum(np.arange(num_draft_tokens), masks[:, None])
    columns = [token, np.where(is_mask, MASK_ROW, state), select.ravel()]
    sent = async_h2d(np.concatenate(columns), dtype=torch.int64, device=input_ids.device)  # type: ignore[arg-type]
    tokens, source, select_index = sent.split([len(column) for column in columns])
    known = torch.cat([input_ids, tail_tokens, input_ids.new_full((1,), mask_token_id)])
    return DraftRows(known[tokens], source, select_index)


def kv_slots_of(req_to_token: Tensor, requests: list[int], starts: list[int], lengths: list[int]) -> Tensor:
    """Return int64[sum(lengths)], the KV slots of positions starts[i]..starts[i] + lengths[i] - 1 of each request.

    req_to_token: [requests, width]; requests: rows of it.
    """
    request, row = spans(np.array(lengths))
    places = np.array(requests)[request] * req_to_token.shape[1] + np.array(starts)[request] + row
    sent = async_h2d(places, dtype=torch.int64, device=req_to_token.device)  # type: ignore[arg-type]
    return req_to_token.view(-1)[sent].to(torch.int64)


def spans(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (which span, where in it) of every item of spans of these lengths, one after the other."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return owner, np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]
