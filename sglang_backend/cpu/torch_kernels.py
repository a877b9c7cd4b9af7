"""Torch versions of SGLang's Triton and CUDA helpers on the speculative path, for chains (topk = 1).

Each takes the arguments of the function it stands in for and writes the same outputs (`cpu/hooks.py` pairs them).
Drafts are chains here, never trees: PEAGLE refuses `--speculative-eagle-topk` above 1; with EAGLE3 do not set it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def extend_cache_locs(
    req_pool_indices: Tensor, req_to_token: Tensor, start_offset: Tensor, end_offset: Tensor, **_: object
) -> Tensor:
    """Return the KV slots of positions start..end-1 of each request, int64[sum(end - start)]."""
    return torch.cat(
        [
            req_to_token[row, start:end]
            for row, start, end in zip(
                req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True
            )
        ]
    ).to(torch.int64)


def assign_draft_cache_locs(
    req_pool_indices, req_to_token, seq_lens, out_cache_loc, topk, num_cols, positions=None, mrope=None
) -> None:
    """Return the KV slots of the topk * num_cols positions from seq_lens on, per request."""
    columns = seq_lens[:, None] + torch.arange(topk * num_cols)
    out_cache_loc.copy_(req_to_token[req_pool_indices[:, None], columns].flatten())
    if positions is not None:
        positions.copy_(seq_lens.repeat_interleave(topk))


def assign_req_to_token(req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, batch_size) -> None:
    """Enter newly allocated KV slots into the requests' rows, positions start..end-1."""
    taken = 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        req_to_token[row, start:end] = out_cache_loc[taken : taken + end - start]
        taken += end - start


def last_kv_slots(req_to_token: Tensor, req_pool_indices_tensor: Tensor, prefix_lens_tensor: Tensor) -> Tensor:
    """Return the KV slot of each request's last token, int64[bs], -1 where it has none."""
    kv_slots = req_to_token[req_pool_indices_tensor, (prefix_lens_tensor - 1).clamp(min=0)]
    return torch.where(prefix_lens_tensor > 0, kv_slots, -1).to(prefix_lens_tensor.dtype)


def build_chain(
    parent_list, top_scores_index, seq_lens, tree_mask, positions, retrieve_index, retrieve_next_token,
    retrieve_next_sibling, topk, spec_steps, num_verify_tokens, tree_mask_mode,
) -> None:  # fmt: skip
    """Build the verify tree of a chain: node j follows node j-1.

    tree_mask stays unread: causal attention is the chain's.
    """
    nodes = torch.arange(num_verify_tokens)
    positions.copy_((seq_lens[:, None] + nodes).flatten())
    retrieve_index.copy_(torch.arange(retrieve_index.numel()).view_as(retrieve_index))
    retrieve_next_token[:, :-1] = nodes[1:]
    retrieve_next_token[:, -1] = -1
    retrieve_next_sibling.fill_(-1)


def _accept(predicts, accept_index, accept_token_num, retrieve_index, accepted, drafts, bonus) -> None:
    """Enter the outcome of one verification: `accepted` drafts stand, then the bonus token."""
    depth = torch.arange(accept_index.shape[1])
    stands = depth <= accepted[:, None]
    nodes = retrieve_index[:, : accept_index.shape[1]]
    accept_index.copy_(torch.where(stands, nodes, -1))
    accept_token_num.copy_(accepted)
    tokens = torch.cat([drafts, bonus[:, None]], dim=1).scatter(1, accepted[:, None], bonus[:, None])
    predicts[nodes[stands]] = tokens[:, : accept_index.shape[1]][stands].to(predicts.dtype)


def verify_greedy(
    predicts, accept_index, accept_token_num, candidates, retrieve_index, retrieve_next_token, retrieve_next_sibling,
    target_predict, topk=-1,
):  # fmt: skip
    """Verify greedily: a draft stands while it is the target's argmax.

    candidates, target_predict: int64[bs, K+1].
    """
    drafts = candidates[:, 1:]
    accepted = (drafts == target_predict[:, :-1]).long().cumprod(1).sum(1)
    bonus = target_predict.gather(1, accepted[:, None])[:, 0]
    _accept(predicts, accept_index, accept_token_num, retrieve_index, accepted, drafts, bonus)
    return predicts, accept_index, accept_token_num


def verify_sampling(
    *, predicts, accept_index, accept_token_num, candidates, retrive_index, retrive_next_token, retrive_next_sibling,
    uniform_samples, uniform_samples_for_final_sampling, target_probs, draft_probs, threshold_single=1.0,
    threshold_acc=1.0, deterministic=True, block_verification=False,
) -> None:  # fmt: skip
    """Verify a chain by speculative sampling.

    target_probs: [bs, K+1, V]; draft_probs: [bs, K or K+1, V], all zero where the drafts were chosen without sampling
    (a draft then stands with the target's own probability of it).
    """
    if block_verification:
        raise NotImplementedError("the CPU platform accepts draft by draft")
    drafts = candidates[:, 1:]
    steps = drafts.shape[1]
    p = target_probs[:, :steps].gather(2, drafts[..., None])[..., 0]
    q = draft_probs[:, :steps].gather(2, drafts[..., None])[..., 0]
    chosen = q == 0
    q = torch.where(chosen, 1.0, q)
    stands = (uniform_samples[:, 1:] * q < p / threshold_acc) | (chosen & (p >= threshold_single))
    accepted = stands.long().cumprod(1).sum(1)
    rows = torch.arange(len(drafts))
    residual = target_probs[rows, accepted].clone()
    refused = accepted < steps
    last = accepted.clamp(max=steps - 1)
    proposal = draft_probs[rows, last]
    one_hot = torch.zeros_like(proposal).scatter_(1, drafts[rows, last][:, None], 1.0)
    proposal = torch.where(chosen[rows, last][:, None], one_hot, proposal)
    residual = torch.where(refused[:, None], (residual - proposal).clamp(min=0), residual)
    # Inverse transform sampling; the coin decides, so equal coins give equal tokens.
    cdf = residual.cumsum(1)
    coin = uniform_samples_for_final_sampling[:, None] * cdf[:, -1:]
    bonus = (cdf <= coin).sum(1).clamp(max=residual.shape[1] - 1)
    _accept(predicts, accept_index, accept_token_num, retrive_index, accepted, drafts, bonus)


def fill_bonus_tokens(accept_tokens, accept_lens, bonus_tokens, accept_stride, batch_size) -> None:
    """Return the last accepted token of each request. accept_tokens: [bs * accept_stride]."""
    rows = torch.arange(batch_size) * accept_stride
    bonus_tokens.copy_(accept_tokens.flatten()[rows + accept_lens.long() - 1])


def gather_spec_extras(indices, topk_p_buf, topk_index_buf, output_tokens_buf, hidden_states_buf):
    """Gather rows of the overlap scheduler's relay buffers."""
    hidden = None if hidden_states_buf is None else hidden_states_buf[indices]
    return topk_p_buf[indices], topk_index_buf[indices], output_tokens_buf[indices], hidden


def row_argmax(x: Tensor) -> Tensor:
    """Return the argmax of each row, int64[rows]. x: [rows, V]."""
    return x.argmax(-1)


def top_k_renorm(probs: Tensor, top_k: Tensor) -> Tensor:
    """Keep the top_k[i] largest probabilities of row i (ties at the border kept), renormalised."""
    k = top_k.to(torch.int64).clamp(1, probs.shape[-1])
    border = probs.sort(dim=-1, descending=True).values.gather(-1, k[:, None] - 1)
    kept = torch.where(probs >= border, probs, 0.0)
    return kept / kept.sum(-1, keepdim=True)


def top_p_renorm(probs: Tensor, top_p: Tensor) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches top_p[i], renormalised."""
    ordered, index = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered = torch.where(before < top_p[:, None], ordered, 0.0)
    kept = torch.zeros_like(probs).scatter_(-1, index, ordered)
    return kept / kept.sum(-1, keepdim=True)


def swiglu_gpt_oss(x: Tensor, gemm1_alpha: float, gemm1_limit: float) -> Tensor:
    """Apply gpt-oss' gated activation of interleaved columns.

    SGLang's is compiled, which takes a C++ compiler on a CPU.
    """
    gate, up = x[..., ::2].clamp(max=gemm1_limit), x[..., 1::2].clamp(-gemm1_limit, gemm1_limit)
    return gate * torch.sigmoid(gate * gemm1_alpha) * (up + 1)
