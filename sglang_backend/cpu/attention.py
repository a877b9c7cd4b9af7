"""SGLang attention backend over torch SDPA that also serves verification and draft-extend, as causal extends.

One SDPA call per request and layer: the rows of a request attend to its prefix and causally to each other. Requests
are never padded to one shape, so a request's result does not depend on who shares its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from torch import Tensor

from sglang_backend.cpu import ATTENTION_BACKEND

FEW_ROWS = 64  # a verification or a drafter's pass, not a long prompt, whose mask is not to be repeated


@dataclass(frozen=True)
class _Rows:
    """Rows start..stop of the batch belong to one request; kv_slots: int64[prefix + rows], its keys in order.

    window_kv_slots: the same in the pool of the sliding-window layers, where SGLang keeps one (gpt-oss); positions that
    have left the window are the padding KV slot there, and masked.
    """

    start: int
    stop: int
    kv_slots: Tensor
    window_kv_slots: Tensor | None
    mask: Tensor | None  # bool[rows, prefix + rows]; None: every key is visible


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None = None, cap: float = 0.0
) -> Tensor:
    """Attend the rows of one request: [rows, heads, v_dim].

    q: [rows, heads, d]; k, v: [keys, kv_heads, d]; mask: bool[rows, keys].
    sinks: [heads], a logit per head that takes its share of the softmax and gives nothing (gpt-oss); cap: logits are
    squashed to (-cap, cap) by tanh (Gemma 2), 0 for not.
    """
    rows, heads, size = q.shape
    kv_heads, k, v = k.shape[1], k.transpose(0, 1), v.transpose(0, 1)
    # Few query heads that share a key head are rows of one head: SDPA packs the keys anew for every query head.
    shared = heads // kv_heads if rows <= FEW_ROWS else 1
    q = q.reshape(rows, heads // shared, shared, size).permute(1, 2, 0, 3).flatten(1, 2)
    if mask is not None:
        mask = mask.repeat(shared, 1)
    if sinks is None and not cap:
        out = F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=len(q) != kv_heads
        )[0]
    else:
        if sinks is not None:
            sinks = sinks.float().view(-1, shared).repeat_interleave(rows, 1)
        out = _softmax_attention(q, k, v, mask, scale, sinks, cap)
    return out.unflatten(1, (shared, rows)).permute(2, 0, 1, 3).flatten(1, 2)


def _softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, sinks: Tensor | None, cap: float
) -> Tensor:
    """Compute what SDPA cannot, [q_heads, rows, v_dim]; heads first everywhere. sinks: [q_heads, rows]."""
    share = len(q) // len(k)
    scores = (q @ k.repeat_interleave(share, 0).transpose(1, 2)).float() * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[..., None]], dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[1]].to(v.dtype)
    return weights @ v.repeat_interleave(share, 0)


class TorchSdpaBackend(AttentionBackend):
    """step: how many tokens past `seq_lens` a multi-step draft pass stands (0 outside AR drafting)."""

    needs_cpu_seq_lens = True

    def __init__(self, model_runner, step: int = 0) -> None:
        super().__init__()
        self.req_to_token = model_runner.req_to_token_pool.req_to_token
        self.token_to_kv_pool = pool = model_runner.token_to_kv_pool
        self.has_window_pool = isinstance(pool, SWAKVPool) and pool.swa_layer_nums > 0
        self.max_context_len = model_runner.model_config.context_len
        self.step = step
        self.rows: list[_Rows] = []

    def init_forward_metadata(self, forward_batch) -> None:
        prefixes, lengths = self._extents(forward_batch)
        rows, start = [], 0
        for request, prefix, length in zip(forward_batch.req_pool_indices.tolist(), prefixes, lengths, strict=True):
            kv_slots = self.req_to_token[request, : prefix + length].to(torch.int64)
            window_kv_slots = (
                self.token_to_kv_pool.translate_loc_from_full_to_swa(kv_slots) if self.has_window_pool else None
            )
            mask = torch.ones(length, prefix + length, dtype=torch.bool).tril(prefix) if length > 1 else None
            rows.append(_Rows(start, start + length, kv_slots, window_kv_slots, mask))
            start += length
        self.rows = rows

    def _extents(self, batch) -> tuple[list[int], list[int]]:
        """Return per request the keys before this pass and the rows in it."""
        mode, seq_lens = batch.forward_mode, batch.seq_lens_cpu.tolist()
        if mode.is_decode():
            # Plain decode counts its token in seq_lens; a draft step does not.
            drafting = batch.spec_info is not None
            return [n + self.step if drafting else n - 1 for n in seq_lens], [1] * len(seq_lens)
        if mode.is_target_verify():
            return seq_lens, [batch.spec_info.draft_token_num] * len(seq_lens)
        lengths = list(batch.extend_seq_lens_cpu)
        return [n - m for n, m in zip(seq_lens, lengths, strict=True)], lengths

    def _mask(self, rows: _Rows, window: int) -> Tensor | None:
        """Return the causal mask, narrowed to the last `window` + 1 keys where the layer slides (-1: it does not)."""
        if window < 0:
            return rows.mask
        length, keys = rows.stop - rows.start, len(rows.kv_slots)
        causal = torch.ones(length, keys, dtype=torch.bool).tril(keys - length)
        return causal & ~causal.tril(keys - length - window - 1)

    def forward(self, q, k, v, layer, forward_batch, save_kv_cache=True, sinks=None, **kwargs) -> Tensor:
        heads, head_dim, v_dim = layer.tp_q_head_num, layer.qk_head_dim, layer.v_head_dim
        out = q.new_empty(q.shape[0], heads, v_dim)
        if forward_batch.forward_mode.is_idle():
            return out.flatten(1)
        pool = self.token_to_kv_pool
        if save_kv_cache and k is not None:
            k, v = k.view(-1, layer.tp_k_head_num, head_dim), v.view(-1, layer.tp_v_head_num, v_dim)
            pool.set_kv_buffer(layer, self._write_kv_slots(forward_batch), k, v)
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        in_window_pool = self.has_window_pool and pool.layers_mapping[layer.layer_id][1]
        q = q.view(-1, heads, head_dim)
        window = getattr(layer, "sliding_window_size", None)
        window = -1 if window is None else window
        for r in self.rows:
            kv_slots = r.window_kv_slots if in_window_pool else r.kv_slots
            k, v = keys.index_select(0, kv_slots).to(q.dtype), values.index_select(0, kv_slots).to(q.dtype)
            mask = self._mask(r, window)
            out[r.start : r.stop] = attend(q[r.start : r.stop], k, v, mask, layer.scaling, sinks, layer.logit_cap)
        return out.flatten(1)

    def _write_kv_slots(self, forward_batch) -> Tensor | KVWriteLoc:
        kv_slots = forward_batch.out_cache_loc
        if not self.has_window_pool:
            return kv_slots
        return KVWriteLoc(kv_slots, self.token_to_kv_pool.translate_loc_from_full_to_swa(kv_slots))

    def support_triton(self) -> bool:
        return False


class TorchSdpaMultiStep:
    """What SGLang's AR EAGLE drafting wants: one backend per draft step."""

    def __init__(self, model_runner, topk: int, num_steps: int) -> None:
        self.attn_backends = [TorchSdpaBackend(model_runner, step) for step in range(num_steps - 1)]
        self.needs_cpu_seq_lens = True

    def init_forward_metadata(self, forward_batch) -> None:
        for backend in self.attn_backends:
            backend.init_forward_metadata(forward_batch)


def register_backend() -> None:
    """Make the backend known to SGLang by its name."""
    from sglang.srt.arg_groups.choices import add_attention_backend_choices, add_draft_attention_backend_choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    register_attention_backend(ATTENTION_BACKEND)(TorchSdpaBackend)
    add_attention_backend_choices([ATTENTION_BACKEND])
    add_draft_attention_backend_choices([ATTENTION_BACKEND])


def decode_backend(factory) -> TorchSdpaMultiStep | None:
    """Return what DraftBackendFactory.create_decode_backend should: the backends of autoregressive draft steps."""
    if factory.speculative_num_steps <= 1:
        return None
    return TorchSdpaMultiStep(factory.draft_model_runner, factory.topk, factory.speculative_num_steps)


def extend_backend(factory) -> TorchSdpaBackend:
    """Return what DraftBackendFactory.create_draft_extend_backend should."""
    return TorchSdpaBackend(factory.draft_model_runner)


def backends_as_listed(cfg) -> tuple:
    """Return SGLang's attention_backends_of, ours by the name of SGLang's own for CPUs, which has as much."""
    from sglang.srt.arg_groups.model_override_base import attention_backends_of

    return tuple("intel_amx" if backend == ATTENTION_BACKEND else backend for backend in attention_backends_of(cfg))
