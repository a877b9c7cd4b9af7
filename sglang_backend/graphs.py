"""CUDA graphs of the decode step's drafter pass: 2K rows per request, one graph per batch size that SGLang captures.

SGLang's own runner for EAGLE's draft-extend captures K+1 rows and one sampled row per request; this one keeps its
capture loop, memory pool and attention hooks, and replaces the static batch. A batch between two captured sizes is
padded with requests whose rows write to the padding KV slot and are read by nobody. Prefill passes run eagerly.
"""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

from sglang.srt.environ import envs
from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, check_cuda_graph_backend
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.runner import get_batch_sizes_to_capture
from sglang.srt.runtime_context import get_spec
from sglang.srt.speculative.eagle_draft_extend_cuda_graph_runner import EAGLEDraftExtendCudaGraphRunner
from sglang.srt.utils import is_cuda
from sglang.srt.utils.device_timer import device_timer_ctx
from torch import Tensor

from sglang_backend.draft_inputs import MASK_ROW, DecodeRows, DraftExtendInput
from sglang_backend.row_budget import drafter_rows, verified_rows

# Those of SGLang's draft-extend list that serve Llama-like attention.
BACKENDS = ("FlashAttentionBackend", "FlashInferAttnBackend", "TritonAttnBackend", "TRTLLMHAAttnBackend")


def wanted(attention_backend) -> bool:
    """Whether SGLang would capture a draft-extend pass here: on CUDA, graphs not disabled, a backend that can."""
    return (
        is_cuda()
        and not check_cuda_graph_backend(Phase.DECODE, Backend.DISABLED)
        and not envs.SGLANG_DISABLE_DRAFT_EXTEND_CUDA_GRAPH.get()
        and any(cls.__name__ in BACKENDS for cls in type(attention_backend).__mro__)
    )


def rows_per_request(num_draft_tokens: int):
    """Context: SGLang's attention backends and runners built in it reckon with 2K rows per request, not K+1."""
    return get_spec().override(speculative_num_draft_tokens=drafter_rows(num_draft_tokens))


class DraftGraphs(EAGLEDraftExtendCudaGraphRunner):
    """Graphs of a worker's drafter pass. `rows` are static buffers, filled by `rows_after_verify` before `execute`."""

    def __init__(self, worker) -> None:
        runner = worker.draft_runner
        self.num_drafts = k = worker.num_drafts
        max_bs = max(get_batch_sizes_to_capture(runner)[0])
        self.static = DecodeRows.allocate(max_bs, k, runner.device)
        for field in fields(DecodeRows):  # what the capture itself runs on: padding
            getattr(self.static, field.name).zero_()
        self.static.source.fill_(MASK_ROW)
        self.logits = runner.graph_shared_output.get_logits_buffer(runner.model.head.draft_vocab_size, rows=max_bs * k)
        with rows_per_request(k):
            super().__init__(worker)  # captures

    def fits(self, bs: int) -> bool:
        return bs in self.capture_bs if self.disable_padding else bs <= self.max_bs

    def rows(self, bs: int) -> DecodeRows:
        """The static rows that serve bs requests: those of the next captured batch size."""
        return self.static.first(self._pad_to_bucket(bs, self.capture_bs), self.num_drafts)

    def capture_one_shape(
        self, size: int, forward, stream_idx=None, variant_label=None, attention_variant=None
    ) -> None:
        batch, attention = self._static_batch(size), self.attn_backend

        def run_once():
            attention.init_forward_metadata_in_graph(batch)
            return self.model_runner.model.forward(batch.input_ids, batch.positions, batch)

        with forward_context(ForwardContext(attn_backend=attention), forward_batch=batch):
            attention.init_forward_metadata_out_graph(batch, in_capture=True)
            self.backend.capture_one(
                self._make_graph_key(size), run_once, post_warmup_hook=attention.on_after_cuda_graph_warmup
            )

    def _static_batch(self, bs: int) -> ForwardBatch:
        buffers, rows, width = self.buffers, self.rows(bs), self.captured_req_width
        batch = ForwardBatch(
            forward_mode=self.forward_mode,
            batch_size=bs,
            input_ids=rows.input_ids,
            positions=rows.positions,
            out_cache_loc=rows.kv_slots,
            req_pool_indices=buffers.req_pool_indices[:bs],
            seq_lens=buffers.seq_lens[:bs],
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

    def execute(self, forward_batch: ForwardBatch) -> Tensor:
        """Logits [bs * K, draft vocabulary], valid until the next replay. `rows` hold the batch's rows."""
        bs = forward_batch.batch_size
        padded = self._pad_to_bucket(bs, self.capture_bs)
        buffers, states = self.buffers, forward_batch.spec_info.hidden_states
        # Padded requests stand at row 0 of req_to_token, whose every entry is the padding KV slot.
        buffers.seq_lens[bs:padded].fill_(self.seq_len_fill_value)
        buffers.req_pool_indices[bs:padded].zero_()
        buffers.extend_seq_lens[:padded].fill_(self.captured_req_width)
        buffers.seq_lens[:bs].copy_(forward_batch.seq_lens)
        buffers.req_pool_indices[:bs].copy_(forward_batch.req_pool_indices)
        buffers.hidden_states[: states.shape[0]].copy_(states)
        if forward_batch.seq_lens_cpu is not None:
            buffers.seq_lens_cpu[bs:padded].fill_(self.seq_len_fill_value)
            buffers.seq_lens_cpu[:bs].copy_(forward_batch.seq_lens_cpu)
        self.attn_backend.init_forward_metadata_out_graph(self._replay_view(forward_batch, padded))
        self.model_runner.shared_read_done_event = None  # the scheduler then waits for the whole pass
        with device_timer_ctx(self.model_runner.device_timer, "eagle_draft_extend"):
            out = self._replay_graph(self._make_graph_key(padded), forward_batch)
        return out.next_token_logits[: bs * self.num_drafts]

    def _replay_view(self, batch: ForwardBatch, padded: int) -> SimpleNamespace:
        """What SGLang's backends read of a padded batch when they plan a replay (its own runner passes the same)."""
        buffers, spec_info, bs = self.buffers, batch.spec_info, batch.batch_size
        spec_info.positions = self.rows(padded).positions
        spec_info.num_correct_drafts = buffers.num_correct_drafts[:padded]
        spec_info.num_accept_tokens = buffers.num_accept_tokens[:padded]
        spec_info.extend_seq_lens_tensor = buffers.extend_seq_lens[:padded]
        spec_info.extend_seq_lens_cpu = [self.captured_req_width] * padded
        total = batch.seq_lens_sum
        return SimpleNamespace(
            batch_size=padded,
            forward_mode=self.forward_mode,
            input_ids=batch.input_ids,
            req_pool_indices=buffers.req_pool_indices[:padded],
            seq_lens=buffers.seq_lens[:padded],
            seq_lens_cpu=None if batch.seq_lens_cpu is None else buffers.seq_lens_cpu[:padded],
            seq_lens_sum=None if total is None else total + (padded - bs) * self.seq_len_fill_value,
            max_seq_len_host=getattr(batch, "max_seq_len_host", None),
            encoder_lens=None,
            extend_seq_lens=buffers.extend_seq_lens[:padded],
            out_cache_loc=batch.out_cache_loc,
            out_cache_loc_virtual=batch.out_cache_loc_virtual,
            kv_loc_plan=batch.kv_loc_plan,
            kv_loc_cols=batch.kv_loc_cols,
            mamba_track_indices=None,
            spec_info=spec_info,
        )
