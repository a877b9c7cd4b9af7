"""How many rows, positions and KV slots a drafting request takes, all of them counted in K.

K          drafts per step. They are verified with the last token before them in K + 1 rows: `verified_rows`.
2K         rows of the drafter's pass in a decode step, per request: `drafter_rows`. A verification leaves at most K + 1
           new tokens (K drafts and the bonus token), each a real row, and K - 1 mask rows follow the last of them.
3K         positions past the length that SGLang knows: `positions_past_length`. Under overlap that length lags by one
           verification, up to K + 1 tokens; the 2K rows begin behind them, so the last stands at K + 1 + 2K - 1 = 3K.
(3K+1)/2   rounded up, half of the KV slots that a request holds past its length: `reserved_kv_slots`. SGLang reserves
           twice the number that an algorithm names, and positions 0..3K past the length are 3K + 1.

K may change between steps (`--speculative-adaptive`); what is reserved counts in the largest: `largest_num_drafts`.
"""

from __future__ import annotations

from sglang.srt.speculative.adaptive_spec_params import resolve_candidate_steps_from_config


def verified_rows(num_drafts: int) -> int:
    return num_drafts + 1


def drafter_rows(num_drafts: int) -> int:
    return 2 * num_drafts


def positions_past_length(num_drafts: int) -> int:
    return 3 * num_drafts


def reserved_kv_slots(num_drafts: int) -> int:
    return -(-(positions_past_length(num_drafts) + 1) // 2)


def largest_num_drafts(spec) -> int:
    """Return the largest K that may come up. spec: SGLang's server arguments, or their runtime view."""
    if not spec.speculative_adaptive:
        return spec.speculative_num_steps
    return max(resolve_candidate_steps_from_config(spec.speculative_adaptive_config))
