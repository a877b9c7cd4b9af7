"""Penalties under speculation: every verified row is penalised for exactly the tokens that stand before it.

SGLang 0.5.23 counts one token per decode step and applies the same penalties to all rows of a verification, which is
right when a step is a token. With K+1 tokens a step, a frequency penalty all but disappears, and `min_new_tokens`
forbids the end for that many steps. Here the counts live on the device, beside each request; SGLang's own penalties
are taken out of the verification that they would enter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sglang.srt.utils.common import async_h2d
from torch import Tensor

COUNTS = "peagle_output_counts"  # attribute of SGLang's Req: int16[V], how often each token stands in the output
STOPS = "peagle_stop_tokens"  # bool[V], what min_new_tokens forbids


@dataclass(frozen=True)
class Strengths:
    """Each [bs, 1]. frequency, presence: subtracted; repetition: divides positive logits, multiplies the others.

    missing: int, tokens a request's output lacks of its min_new_tokens before the first row.
    """

    frequency: Tensor
    presence: Tensor
    repetition: Tensor
    missing: Tensor


def is_penalised(request) -> bool:
    params = request.sampling_params
    return bool(
        params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1 or params.min_new_tokens
    )


def penalise(logits: Tensor, drafts: Tensor, counts: Tensor, stops: Tensor, strengths: Strengths) -> None:
    """Penalise each row for the tokens before it, in place.

    logits: [bs, K+1, V]; drafts: int64[bs, K], before rows 1..K; counts: int16[bs, V], before row 0.
    """
    one = counts.new_ones(len(counts), 1)
    for row in range(logits.shape[1]):
        if row:
            counts = counts.scatter_add(1, drafts[:, row - 1 : row], one)
        x, seen = logits[:, row], counts > 0
        x = x - strengths.frequency * counts - strengths.presence * seen
        x = x.masked_fill(stops & (strengths.missing > row), -torch.inf)
        repeated = torch.where(x < 0, x * strengths.repetition, x / strengths.repetition)
        logits[:, row] = torch.where(seen, repeated, x)


def count_accepted(counts: Tensor, chosen: Tensor, accept_lens: Tensor) -> Tensor:
    """Add the accepted tokens to the counts.

    counts: int16[bs, V]; chosen: [bs, K+1], the target's choice after each row, of which accept_lens[i] stand.
    """
    stands = torch.arange(chosen.shape[1], device=chosen.device) < accept_lens[:, None]
    return counts.scatter_add(1, chosen.long(), stands.to(counts.dtype))


def start(requests: list, finished: list[bool], first_tokens: Tensor, vocab_size: int) -> None:
    """Count, after a prefill, the output so far (a retracted request has some) and the token just sampled.

    finished: whether the prompt of each request is; first_tokens: [bs].
    """
    for i, (request, done) in enumerate(zip(requests, finished, strict=True)):
        if not (done and is_penalised(request)):
            continue
        output = _on_device(list(request.output_ids), first_tokens.device)
        tokens = torch.cat([output, first_tokens[i : i + 1].long()])
        none = torch.zeros(vocab_size, dtype=torch.int16, device=tokens.device)
        setattr(request, COUNTS, none.scatter_add(0, tokens, torch.ones_like(tokens, dtype=torch.int16)))
        if request.sampling_params.min_new_tokens:
            stops = _on_device(sorted(stop_tokens(request)), tokens.device)
            setattr(request, STOPS, none.bool().index_fill(0, stops, True))


def sample_penalised(sample: Callable, verify_input, batch, logits_output, *args, **kwargs) -> tuple:
    """Penalise, AROUND eagle_sample, the logits that it verifies, and count what it accepts."""
    requests = [] if batch.forward_mode.is_idle() else batch.reqs
    if not any(map(is_penalised, requests)):
        return sample(verify_input, batch, logits_output, *args, **kwargs)
    all_logits = logits_output.next_token_logits
    none = all_logits.new_zeros(all_logits.shape[-1], dtype=torch.int16)
    counts = torch.stack([getattr(request, COUNTS, none) for request in requests])
    stops = torch.stack([getattr(request, STOPS, none.bool()) for request in requests])
    drafts = verify_input.draft_token.view(len(requests), -1)[:, 1:]
    strengths = _strengths(requests, batch.seq_lens)
    penalise(all_logits.view(len(requests), -1, counts.shape[1]), drafts, counts, stops, strengths)
    # This is the copy of the sampling parameters that one forward pass owns.
    batch.sampling_info.acc_additive_penalties = batch.sampling_info.acc_scaling_penalties = None
    chosen, accept_lens, index = sample(verify_input, batch, logits_output, *args, **kwargs)
    counts = count_accepted(counts, chosen.view(len(requests), -1), accept_lens)
    for request, of_one in zip(requests, counts, strict=True):
        if is_penalised(request):
            setattr(request, COUNTS, of_one)
    return chosen, accept_lens, index


def _strengths(requests: list, seq_lens: Tensor) -> Strengths:
    params = [request.sampling_params for request in requests]
    values = [[p.frequency_penalty, p.presence_penalty, p.repetition_penalty] for p in params]
    table = async_h2d(values, dtype=torch.float32, device=seq_lens.device)
    # seq_lens does not count the last token of the output, which has no KV yet.
    ends = [len(r.origin_input_ids) + p.min_new_tokens - 1 for r, p in zip(requests, params, strict=True)]
    missing = _on_device(ends, seq_lens.device)[:, None] - seq_lens[:, None]
    return Strengths(table[:, :1], table[:, 1:2], table[:, 2:], missing)


def _on_device(values: list[int], device: torch.device) -> Tensor:
    return async_h2d(values, dtype=torch.int64, device=device)


def stop_tokens(request) -> set[int]:
    """Return what SGLang's own penalty for min_new_tokens forbids."""
    tokenizer = request.tokenizer
    stops = set(request.sampling_params.stop_token_ids or ()) | set(request.eos_token_ids or ())
    stops |= set(tokenizer.additional_stop_token_ids or ()) | {tokenizer.eos_token_id}
    return stops - {None}
