"""A SGLang plugin for tests: in the scheduler it watches every decode step of the PEAGLE worker, and checks it.

1. Each step, and each drafter pass of a prefill, runs under `NoHostSync`, where asking a tensor for its value is an
   error, and so is a copy to the device that waits.
2. Each step's drafter pass runs twice, eagerly and through sglang_backend.graphs, and the logits are compared. There
   is no CUDA here, so `Replay` stands in for SGLang's graph backend: where a CUDA graph replays the kernels of the
   captured call, it makes the captured call again, on the same static buffers. It shows that padding is harmless and
   that the buffers hold what the pass needs; it cannot show that the pass can be captured.

One line of JSON per step goes to $DECODE_PROBE.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import torch
from no_host_sync import NoHostSync, allowed

CAPTURE_BS = [1, 2, 4, 8]
POISON = 1e3  # in the padding slot: whoever reads it is far off


def register() -> None:
    """Entry point `sglang.srt.plugins`."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("sglang.srt.speculative.eagle_worker_v2.EagleDraftWorker.__init__", watch, HookType.AFTER)


def watch(_result, worker, *_args, **_kwargs) -> None:
    cls = type(worker)
    if cls.__name__ != "PEagleDraftWorker" or hasattr(cls, "unwatched"):
        return
    stand_in_for_cuda()
    cls.unwatched, cls.unwatched_prefill = cls._draft_extend_for_decode, cls._draft_extend_for_prefill
    cls._draft_extend_for_decode, cls._draft_extend_for_prefill = decode_step, prefill
    set_drafts = cls._set_drafts

    def keep_logits(self, draft_input, output, *more):
        set_drafts(self, draft_input, output, *more)
        self.logits = output.next_token_logits.clone()  # a correction has been added by now, in a graph or here

    cls._set_drafts = keep_logits


def prefill(worker, batch, *args, **kwargs):
    with NoHostSync(batch.seq_lens_cpu, batch.req_pool_indices_cpu) as watched:
        draft_input = worker.unwatched_prefill(batch, *args, **kwargs)
    report(prefill_watched=watched.calls)
    return draft_input


def report(**line) -> None:
    with Path(os.environ["DECODE_PROBE"]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def decode_step(worker, batch, result, **kwargs) -> None:
    bs, graphs = len(batch.reqs), worker.cuda_graph_runner_for_draft_extend
    pool = worker.draft_runner.token_to_kv_pool
    for layer in range(pool.layer_num):
        pool.get_key_buffer(layer)[0] = pool.get_value_buffer(layer)[0] = POISON
    again = copy.copy(batch)
    worker.cuda_graph_runner_for_draft_extend = None
    with NoHostSync(batch.seq_lens_cpu):
        worker.unwatched(again, result, **kwargs)
    eager, drafts = worker.logits, result.next_draft_input.topk_index
    worker.cuda_graph_runner_for_draft_extend = graphs
    padded = None
    if graphs.fits(bs):
        padded = graphs._pad_to_bucket(bs, graphs.capture_bs)
        # The worst leftovers of an earlier batch: padded rows would write over the first token of the first request.
        graphs.static.source.fill_(0)
        graphs.static.input_ids.fill_(7)
        graphs.static.kv_slots.fill_(worker.req_to_token_pool.req_to_token[batch.req_pool_indices[0], 0])
        graphs.static.owners.fill_(batch.req_pool_indices[0])
        graphs.static.ends.fill_(2 * worker.num_drafts + 1)
    with NoHostSync(batch.seq_lens_cpu) as watched:
        worker.unwatched(batch, result, **kwargs)
    report(
        bs=bs,
        padded=padded,
        watched=watched.calls,
        apart=float((worker.logits - eager).abs().max()),
        same=torch.equal(drafts, result.next_draft_input.topk_index),
        shape=list(worker.logits.shape) == list(eager.shape),
        captured=worker._specialized_graph_time_usage["draft_extend"],
        reach=worker.draft_extend_attn_backend.max_context_len,
    )


class Replay:
    """Stands in for SGLang's CUDA graph backend, see above."""

    def __init__(self, _runner, **_options) -> None:
        self.calls: dict = {}

    def capture_one(self, key, call, capture_inputs=None, post_warmup_hook=None) -> None:
        from sglang.srt.model_executor.forward_context import forward_context, get_forward_context

        context = get_forward_context()

        def again():
            with forward_context(context):
                return call()

        call()
        self.calls[key] = (again, call())

    def can_run(self, _batch, key) -> bool:
        return key in self.calls

    def replay(self, key, _batch):
        call, captured = self.calls[key]
        out = call()
        captured.next_token_logits.copy_(out.next_token_logits)
        if out.hidden_states is not None:
            captured.hidden_states.copy_(out.hidden_states)
        return captured


def stand_in_for_cuda() -> None:
    from sglang.srt.model_executor.graph_shared_output import GraphSharedOutput
    from sglang.srt.speculative import eagle_draft_extend_cuda_graph_runner as sglangs

    from sglang_backend import draft_inputs, drafter_pass, graphs, scratch_kv_slots
    from sglang_backend.cpu.attention import TorchSdpaBackend

    class Graphs(graphs.DraftGraphs):
        def __init__(self, worker) -> None:
            rows = max(CAPTURE_BS) * (worker.num_drafts + 1)
            worker.draft_runner.graph_shared_output = GraphSharedOutput(device="cpu", max_rows=rows)
            super().__init__(worker)

        def _capture(self) -> None:
            self.buffers.reset_index_buffers()
            self.buffers.seq_lens_cpu.fill_(self.seq_len_fill_value)
            for bs in reversed(self.capture_bs):
                assert self._static_batch(bs).extend_seq_lens.tolist() == [2 * self.num_drafts] * bs
                self.capture_one_shape(bs, None)

    for module in (graphs, sglangs):
        module.get_batch_sizes_to_capture = lambda *_, **__: (CAPTURE_BS, [])
    sglangs.resolve_decode_backend = Replay
    graphs.wanted = lambda _backend: True
    graphs.DraftGraphs = Graphs
    TorchSdpaBackend.init_cuda_graph_state = lambda *_: None
    TorchSdpaBackend.get_cuda_graph_seq_len_fill_value = lambda _: 1
    TorchSdpaBackend.init_forward_metadata_out_graph = plan_replay
    # SGLang's own: pinned where there is a GPU; and what it evicts from its cache.
    for module in (draft_inputs, drafter_pass, scratch_kv_slots):
        module.async_h2d = allowed(module.async_h2d)
    scratch_kv_slots.evict_from_tree_cache = allowed(scratch_kv_slots.evict_from_tree_cache)
    # The CPU backend asks for lengths all the time; the backends of GPUs are SGLang's.
    for name in ("init_forward_metadata", "init_forward_metadata_out_graph", "forward"):
        setattr(TorchSdpaBackend, name, allowed(getattr(TorchSdpaBackend, name)))


def plan_replay(backend, batch, in_capture: bool = False) -> None:
    """Metadata of a padded batch: rows of every request, padded ones at row 0 of the table (all slot 0)."""
    assert torch.equal(batch.seq_lens_cpu, batch.seq_lens), "what the host and the device know of lengths"
    backend.init_forward_metadata(batch)
