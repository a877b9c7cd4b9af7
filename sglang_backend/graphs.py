"""CUDA graphs of the decode step's drafter pass: 2K rows per request, one graph per batch size that SGLang captures.

SGLang's own runner for EAGLE's draft-extend captures K+1 rows and one sampled row per request; this one keeps its
capture loop, memory pool and attention hooks, and replaces the static batch. A batch between two captured sizes is
padded with requests whose rows write to the padding KV slot and are read by nobody. Prefill passes run eagerly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sglang.srt.environ import envs
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, check_cuda_graph_backend
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.runner import get_batch_sizes_to_capture
from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend
from sglang.srt.runtime_context import get_spec
from sglang.srt.speculative.eagle_draft_extend_cuda_graph_runner import EAGLEDraftExtendCudaGraphRunner
from sglang.srt.utils import is_cuda
from sglang.srt.utils.device_timer import device_timer_ctx
from torch import Tensor

from sglang_backend.draft_inputs import DecodeRows, DraftExtendInput, rows_after_verify
from sglang_backend.proposals import Chain, propose_greedy
from sglang_backend.row_budget import drafter_rows, verified_rows

# Those of SGLang's draft-extend list that serve Llama-like attention.
BACKENDS = ("FlashAttentionBackend", "FlashInferAttnBackend", "TritonAttnBackend", "TRTLLMHAAttnBackend")

WIDTHS = ("extend_seq_lens", "num_correct_drafts", "num_accept_tokens")  # buffers of a runner that hold its width


def wanted(attention_backend) -> bool:
    """Return whether SGLang would capture a draft-extend pass here.

    That is on CUDA, graphs not disabled, with a backend that can.
    """
    return (
        is_cuda()
        and not check_cuda_graph_backend(Phase.DECODE, Backend.DISABLED)
        and not envs.SGLANG_DISABLE_DRAFT_EXTEND_CUDA_GRAPH.get()
        and any(cls.__name__ in BACKENDS for cls in type(attention_backend).__mro__)
    )


def rows_per_request(num_draft_tokens: int):
    """Let SGLang's attention backends and runners built in this context reckon with 2K rows, not K+1."""
    return get_spec().override(speculative_num_draft_tokens=drafter_rows(num_draft_tokens))


def padding_rows(bs: int, num_draft_tokens: int, worker) -> DecodeRows:
    """Return rows of bs requests, all of them padding: `rows_after_verify` of a request that accepted nothing.

    The types are those of a decode step, so that its kernel is compiled for this K before requests wait for it.
    """
    table = worker.req_to_token_pool.req_to_token
    nothing = torch.zeros(1, dtype=torch.int32, device=table.device)
    tokens = torch.zeros(verified_rows(num_draft_tokens), dtype=torch.int32, device=table.device)
    rows = DecodeRows.allocate(bs, num_draft_tokens, table.device)
    return rows_after_verify(
        tokens,
        nothing,
        nothing.long(),
        nothing.long(),
        table,
        num_draft_tokens,
        worker.mask_token_id,
        num_verified=num_draft_tokens,
        out=rows,
    )


class DraftGraphs(EAGLEDraftExtendCudaGraphRunner):
    """Graphs of a worker's drafter pass, over static rows that `rows_after_verify` writes before each replay."""

    def __init__(self, worker) -> None:
        runner = worker.draft_runner
        self.num_drafts = k = worker.num_drafts
        max_bs = max(get_batch_sizes_to_capture(runner)[0])
        self.static = padding_rows(max_bs, k, worker)  # what the capture itself runs on
        self.logits = runner.graph_shared_output.get_logits_buffer(runner.model.head.draft_vocab_size, rows=max_bs * k)
        self.draft_to_target = worker.hot_token_id
        greedy = None if worker.samples_drafts else torch.zeros(max_bs, k, dtype=torch.int64, device=runner.device)
        self.drafts = greedy  # the argmax of each pass, which is drafted unless drafts are sampled
        with rows_per_request(k):
            super().__init__(worker)  # captures
        # A full graph computes the metadata anew from lengths and slots, if its backend can (fa3); else, and where
        # attention runs between the parts of a graph, it is planned before each replay.
        self.plans_in_graph = self.attn_backend.draft_extend_metadata_captured_in_graph() and isinstance(
            self.backend, FullCudaGraphBackend
        )

    def capture(self) -> None:
        """Capture with the widths of this K.

        SGLang shares buffers of a size among runners, contents and all, so those of the first K would be here; fa3
        reads the widths while it warms up, and would write attention output for as many rows. Lengths on the host are
        those of the static rows, all of them padding.
        """
        self.seq_len_fill_value = self.captured_req_width
        for name in WIDTHS:
            setattr(self.buffers, name, torch.full_like(getattr(self.buffers, name), self.captured_req_width))
        super().capture()

    def fits(self, bs: int) -> bool:
        return bs in self.capture_bs if self.disable_padding else bs <= self.max_bs

    def capture_one_shape(
        self, size: int, forward, stream_idx=None, variant_label=None, attention_variant=None
    ) -> None:
        batch, attention = self._static_batch(size), self.attn_backend

        def run_once():
            attention.init_forward_metadata_in_graph(batch)
            out = self.model_runner.model.forward(batch.input_ids, batch.positions, batch)
            if self.drafts is not None:
                logits = out.next_token_logits.view(size, self.num_drafts, -1)
                chain = self._chain(batch, out.hidden_states)
                self.drafts[:size].copy_(propose_greedy(logits, self.draft_to_target, chain).token_ids)
            return out

        with forward_context(ForwardContext(attn_backend=attention), forward_batch=batch):
            attention.init_forward_metadata_out_graph(batch, in_capture=True)
            self.backend.capture_one(
                self._make_graph_key(size), run_once, post_warmup_hook=attention.on_after_cuda_graph_warmup
            )

    def _chain(self, batch: ForwardBatch, states: Tensor | None) -> Chain | None:
        """Return what makes drafts follow from each other; the row of draft 1 is each request's last real one.

        states: [bs * K, H] of the pass, None of a head without a correction.
        """
        if states is None:
            return None
        model = self.model_runner.model
        last = batch.positions[batch.spec_info.select_index.view(-1, self.num_drafts)[:, 0]]
        text = model.texts.read(batch.req_pool_indices, last + 1)
        return Chain(model, states.view(len(last), self.num_drafts, -1), text)

    def _static_batch(self, bs: int) -> ForwardBatch:
        buffers, rows, width = self.buffers, self.static.first(bs, self.num_drafts), self.captured_req_width
        batch = ForwardBatch(
            forward_mode=self.forward_mode,
            batch_size=bs,
            input_ids=rows.input_ids,
            positions=rows.positions,
            out_cache_loc=rows.kv_slots,
            req_pool_indices=rows.owners,
            seq_lens=rows.ends,
            seq_lens_cpu=buffers.seq_lens_cpu[:bs],
            seq_lens_sum=bs * self.seq_len_fill_value,
            extend_seq_lens=buffers.extend_seq_lens[:bs],
            extend_seq_lens_cpu=[width] * bs,
            next_token_logits_buffer=self.logits[: bs * self.num_drafts],
            return_logprob=False,
            spec_algorithm=self.model_runner.spec_algorithm,
            spec_info=DraftExtendInput(
                hidden_states=buffers.hidden_states[: bs * verified_rows(self.num_drafts)],
                source=rows.source,
                positions=rows.positions,
                select_index=rows.select_index,
                num_correct_drafts=buffers.num_correct_drafts[:bs],
                num_accept_tokens=buffers.num_accept_tokens[:bs],
                num_tokens_per_req=width,
                num_tokens_for_logprob_per_req=width,
            ),
            capture_hidden_mode=CaptureHiddenMode.NULL,
        )
        self.model_runner.kv_index_translator.bind_runner_slots(batch)
        return batch

    def draft(self, batch, result) -> tuple[LogitsProcessorOutput, Tensor | None]:
        """Run the pass of a decode step: three launches, and what the attention backend plans outside its graph.

        batch: SGLang's, of as many requests as `fits`; result: of their verification.
        -> (logits [bs * K, draft vocabulary] and states [bs * K, H] as of the model's forward, valid until the next
        replay; drafts int64[bs, K] as target ids, None where they are to be sampled)
        """
        bs, states = batch.seq_lens.shape[0], result.logits_output.hidden_states
        padded = self._pad_to_bucket(bs, self.capture_bs)
        rows_after_verify(
            result.next_token_ids, result.accept_lens, batch.seq_lens, batch.req_pool_indices,
            self.eagle_worker.req_to_token_pool.req_to_token, self.num_drafts, self.eagle_worker.mask_token_id,
            self.eagle_worker.num_verified, out=self.static.first(padded, self.num_drafts),
        )  # fmt: skip
        self.buffers.hidden_states[: states.shape[0]].copy_(states)
        if not self.plans_in_graph:
            self.attn_backend.init_forward_metadata_out_graph(self._planned_batch(padded, batch.seq_lens_cpu))
        self.model_runner.shared_read_done_event = None  # the scheduler then waits for the whole pass
        with device_timer_ctx(self.model_runner.device_timer, "eagle_draft_extend"):
            out = self._replay_graph(self._make_graph_key(padded), None)
        drafts = None if self.drafts is None else self.drafts[:bs].clone()  # a request may wait with them
        rows = bs * self.num_drafts
        states = None if out.hidden_states is None else out.hidden_states[:rows]
        return LogitsProcessorOutput(out.next_token_logits[:rows], hidden_states=states), drafts

    def _planned_batch(self, bs: int, lengths: Tensor | None) -> ForwardBatch:
        """Return the static batch with what backends read when they plan a replay.

        lengths: int64[up to bs] on the host, before the pass; None where no backend asks for them.
        """
        batch = self._static_batch(bs)
        batch.spec_info.extend_seq_lens_tensor = batch.extend_seq_lens
        batch.spec_info.extend_seq_lens_cpu = batch.extend_seq_lens_cpu
        batch.seq_lens_cpu = batch.seq_lens_sum = None
        if lengths is not None:
            batch.seq_lens_cpu = F.pad(lengths, (0, bs - len(lengths))) + self.captured_req_width
            batch.seq_lens_sum = int(batch.seq_lens_cpu.sum())
        return batch
