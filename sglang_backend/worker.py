"""The PEAGLE worker: SGLang's V2 EAGLE worker with one drafter pass per step in place of K.

A step is: verify the K drafts in hand (SGLang's own verification, sampling, grammars, logprobs), then one drafter pass
over the accepted tokens and K-1 mask rows, which yields the next K drafts. They travel to the next step as ids; the
`draft` stage, where EAGLE runs its K passes, only builds the verify input.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch
from sglang.srt.runtime_context import get_spec
from sglang.srt.speculative.adaptive_runtime_state import AdaptiveController
from sglang.srt.speculative.adaptive_spec_params import AdaptiveSpeculativeParams
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.draft_utils import DraftBackendFactory
from sglang.srt.speculative.eagle_info import EagleDraftInput
from sglang.srt.speculative.eagle_utils import _eagle_prefill_tail_tokens
from sglang.srt.speculative.eagle_worker_common import build_eagle_verify_input, prepare_for_draft_extend
from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker, EAGLEWorkerV2
from sglang.srt.speculative.spec_utils import draft_pp_context, draft_tp_context
from sglang.srt.utils.common import async_h2d
from torch import Tensor

from sglang_backend import graphs, proposals
from sglang_backend.corrections.adaptive import max_num_draft_tokens
from sglang_backend.corrections.context_limit import lengthen_drafter_context
from sglang_backend.corrections.min_p import MinP
from sglang_backend.corrections.penalties import ExactPenalties
from sglang_backend.draft_inputs import (
    DraftExtendInput,
    DraftRows,
    rows_after_prefill,
    rows_after_verify,
)
from sglang_backend.dump import drafter_passes
from sglang_backend.scratch_slots import ScratchSlots


@dataclass
class Counters:
    """What `/server_info` shows under `peagle`: counted where the passes happen."""

    decode_steps: int = 0
    decode_drafter_passes: int = 0
    prefill_drafter_passes: int = 0
    prefills_without_masks: int = 0


class PEagleDraftWorker(EagleDraftWorker):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.counters = Counters()
        self.recorder = drafter_passes.from_environment()
        self.relay_width = max_num_draft_tokens(get_spec())
        lengthen_drafter_context(self.draft_runner, get_spec())
        self.mask_token_id = self.draft_runner.model.head.mask_token_id
        self.samples_drafts = get_spec().speculative_use_rejection_sampling
        self.penalties = ExactPenalties(self.target_worker.model_config.vocab_size, self.device)

    @property
    def num_drafts(self) -> int:
        """K of the step in hand; adaptive speculation changes it between steps."""
        return self.speculative_num_steps

    def alloc_memory_pool(
        self, memory_pool_config=None, req_to_token_pool=None, token_to_kv_pool_allocator=None
    ) -> None:
        """EAGLE's, without its refusal of a draft vocabulary under rejection sampling (see `proposals`)."""
        self.req_to_token_pool = req_to_token_pool
        self.token_to_kv_pool_allocator = token_to_kv_pool_allocator
        self.draft_worker.alloc_memory_pool(
            memory_pool_config=memory_pool_config,
            req_to_token_pool=req_to_token_pool,
            token_to_kv_pool_allocator=token_to_kv_pool_allocator,
        )
        self.init_lm_head()

    def init_lm_head(self) -> None:
        embed, head = self._resolve_shared_embed_and_head()
        model = self.draft_runner.model
        model.share_with_target(embed, head)
        if model.hot_token_id is not None:
            model.hot_token_id = model.hot_token_id.to(embed.device)
        self.hot_token_id = model.hot_token_id  # one tensor, so that weight updates reach it

    def init_attention_backend(self) -> None:
        """No multi-step draft backend: there are no draft decode steps."""
        factory = DraftBackendFactory(self.draft_runner, self.topk, self.speculative_num_steps)
        self.draft_attn_backend = None
        with graphs.rows_per_request(self.num_drafts):
            self.draft_extend_attn_backend = factory.create_draft_extend_backend()
        self.draft_runner.draft_attn_backend = None
        if self.draft_extend_attn_backend is not None:
            self.draft_runner.attn_backend = self.draft_extend_attn_backend

    def init_cuda_graphs(self) -> None:
        """SGLang's, without its graphs of the drafter's prefill: our prefill passes run eagerly."""
        with draft_pp_context(), draft_tp_context(self.parallel_layout):
            self.draft_worker.init_cuda_graphs(capture_decode_cuda_graph=False)
            self._capture_cuda_graphs()

    def _capture_cuda_graphs(self) -> None:
        self.cuda_graph_runner = None
        backend = self.draft_extend_attn_backend
        self.cuda_graph_runner_for_draft_extend = graphs.DraftGraphs(self) if graphs.wanted(backend) else None

    def draft(self, batch, *, with_topology: bool = False):
        """The verify input of the drafts that came with the batch; no drafter pass here."""
        draft_input: EagleDraftInput = batch.spec_info
        bs = batch.seq_lens.shape[0]
        return build_eagle_verify_input(
            batch,
            draft_input,
            self._topk1_parents_prealloc[:bs],
            self._topk1_score_indices_prealloc[:bs],
            draft_input.topk_index[:, : self.num_drafts],
            None if draft_input.draft_probs is None else draft_input.draft_probs[:, : self.num_drafts],
            target_worker=self.target_worker,
            topk=1,
            num_steps=self.num_drafts,
            num_draft_tokens=self.num_drafts + 1,
            tree_mask_mode=self.tree_mask_mode,
            device=self.device,
        )

    def _draft_extend_for_prefill(
        self, batch, target_hidden_states, next_token_ids, mm_input_embeds=None, kv_loc_plan=None
    ) -> EagleDraftInput:
        """Fill the drafter's KV with the prompt rows of this pass and draft K tokens for every finished prompt."""
        lengths = batch.seq_lens_cpu.tolist()
        finished = [request is not batch.chunked_req for request in batch.reqs]
        masks = [self.num_drafts - 1 if done else 0 for done in finished]
        req_to_token = self.req_to_token_pool.req_to_token
        with ScratchSlots(batch, self.token_to_kv_pool_allocator, req_to_token, lengths, masks) as scratch:
            if not scratch.available:
                masks = [0] * len(masks)
                self.counters.prefills_without_masks += 1
            rows = rows_after_prefill(
                batch.input_ids,
                _eagle_prefill_tail_tokens(batch, next_token_ids),
                batch.extend_lens,
                masks,
                self.num_drafts,
                self.mask_token_id,
            )
            forward_batch = self._prefill_batch(batch, rows, masks, target_hidden_states)
            logits = self.draft_runner.forward(forward_batch).logits_output.next_token_logits
        self.counters.prefill_drafter_passes += 1
        draft_input = EagleDraftInput(
            bonus_tokens=next_token_ids, num_tokens_per_req=1, num_tokens_for_logprob_per_req=1
        )
        self._set_drafts(draft_input, logits, batch, batch.seq_lens + 1)
        self.penalties.start(batch.reqs, finished, next_token_ids)
        return draft_input

    def _prefill_batch(self, batch, rows: DraftRows, masks: list[int], hidden_states: Tensor) -> ForwardBatch:
        """SGLang's prefill batch with mask rows behind each finished prompt."""
        extended = copy.copy(batch)
        extended.input_ids = rows.input_ids
        extended.input_embeds = extended.replace_embeds = None  # of the prompt, for the target; the drafter has ids
        extended.extend_lens = [n + m for n, m in zip(batch.extend_lens, masks, strict=True)]
        extended.extend_num_tokens = len(rows.input_ids)
        extended.seq_lens_cpu = batch.seq_lens_cpu + torch.tensor(masks)
        extended.seq_lens = batch.seq_lens + async_h2d(masks, dtype=torch.int64, device=batch.seq_lens.device)
        extended.seq_lens_sum = int(extended.seq_lens_cpu.sum())
        req_to_token = self.req_to_token_pool.req_to_token
        extended.out_cache_loc = torch.cat(
            [
                req_to_token[request, end - length : end]
                for request, end, length in zip(
                    batch.req_pool_indices_cpu.tolist(),
                    extended.seq_lens_cpu.tolist(),
                    extended.extend_lens,
                    strict=True,
                )
            ]
        ).to(torch.int64)
        extended.spec_info = DraftExtendInput(
            hidden_states=hidden_states,
            source=rows.source,
            select_index=rows.select_index,
            num_tokens_per_req=1,
            num_tokens_for_logprob_per_req=1,
        )
        forward_batch = ForwardBatch.init_new(
            extended,
            self.draft_runner,
            capture_hidden_mode=CaptureHiddenMode.NULL,
            return_hidden_states_before_norm=False,
        )
        forward_batch.return_logprob = False
        return forward_batch

    def _draft_extend_for_decode(self, batch, batch_result, *, kv_loc_plan=None) -> None:
        """The one drafter pass of a decode step: 2K rows per request at positions seq_lens, seq_lens + 1, ..."""
        self.counters.decode_steps += 1
        width, bs = 2 * self.num_drafts, batch.seq_lens.shape[0]
        runner = self.cuda_graph_runner_for_draft_extend
        if runner is not None and not runner.fits(bs):
            runner = None
        rows = rows_after_verify(
            batch_result.next_token_ids,
            batch_result.accept_lens,
            batch.seq_lens,
            batch.req_pool_indices,
            self.req_to_token_pool.req_to_token,
            self.num_drafts,
            self.mask_token_id,
            out=None if runner is None else runner.rows(bs),
        ).first(bs, self.num_drafts)
        batch.out_cache_loc = rows.slots
        extend_input = DraftExtendInput(
            hidden_states=batch_result.logits_output.hidden_states,
            source=rows.source,
            select_index=rows.select_index,
            positions=rows.positions,
            num_correct_drafts=batch_result.accept_lens - 1,
            num_accept_tokens=batch_result.accept_lens,
            num_tokens_per_req=width,
            num_tokens_for_logprob_per_req=width,
        )
        forward_batch = prepare_for_draft_extend(
            extend_input,
            batch,
            rows.input_ids,
            width,
            self.draft_runner,
            runner,
            return_hidden_states_before_norm=False,
        )
        if runner is not None:
            logits = runner.execute(forward_batch)
        else:
            logits = self.draft_runner.forward(forward_batch).logits_output.next_token_logits
        self.counters.decode_drafter_passes += 1
        self._set_drafts(batch_result.next_draft_input, logits, batch, batch_result.new_seq_lens + 1)

    def _set_drafts(self, draft_input: EagleDraftInput, logits: Tensor, batch, known: Tensor) -> None:
        """The drafts of each request, as target ids. logits: [bs * K, V_d]; known: int64[bs], tokens it has so far."""
        by_request = logits.view(-1, self.num_drafts, logits.shape[-1])
        if self.samples_drafts:
            vocab_size = self.target_worker.model_config.vocab_size
            proposal = proposals.propose_sampled(by_request, self.hot_token_id, batch.sampling_info, known, vocab_size)
        else:
            proposal = proposals.propose_greedy(by_request, self.hot_token_id)
        if self.recorder is not None:
            self.recorder.record([r.rid for r in batch.reqs], known, proposal.token_ids, logits)
        # SGLang's relay buffers have one width; where K is to rise, the tokens missing are drafted as 0 for one step.
        missing = self.relay_width - self.num_drafts
        draft_input.topk_index = F.pad(proposal.token_ids, (0, missing))
        draft_input.topk_p = torch.ones_like(draft_input.topk_index, dtype=torch.float32)
        draft_input.draft_probs = None if proposal.probs is None else F.pad(proposal.probs, (0, 0, 0, missing))
        draft_input.hidden_states = None


class PEagleWorker(EAGLEWorkerV2):
    """EAGLEWorkerV2 around our draft worker. Its constructor builds its own kind of draft worker, hence ours."""

    def __init__(self, server_args, gpu_id: int, nccl_port: int, target_worker) -> None:
        from sglang.srt.runtime_context import get_device, get_schedule
        from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
        from sglang.srt.speculative.spec_utils import get_plan_stream

        BaseSpecWorker.__init__(self)
        spec = get_spec()
        self.server_args = server_args
        self.topk = spec.speculative_eagle_topk
        self.speculative_num_steps = spec.speculative_num_steps
        self.speculative_num_draft_tokens = spec.speculative_num_draft_tokens
        self.gpu_id = gpu_id
        self.device = get_device().device
        self.page_size = get_schedule().page_size
        self.speculative_algorithm = SpeculativeAlgorithm.from_string(spec.speculative_algorithm)
        self.enable_dp_spec_prefill_coordination = False
        self.adaptive_controller = None
        if spec.speculative_adaptive:
            policy = AdaptiveSpeculativeParams(self.speculative_num_steps, spec.speculative_adaptive_config)
            self.adaptive_controller = AdaptiveController(self, policy)
        self.plan_stream, self.plan_stream_ctx = get_plan_stream(self.device)
        self._target_worker = target_worker
        self._hosts_draft = True
        self._draft_worker = PEagleDraftWorker(server_args, gpu_id, nccl_port, target_worker)
        self.min_p = MinP()

    def verify(self, batch, *args, **kwargs):
        with self.min_p.in_force(batch.sampling_info):
            return super().verify(batch, *args, **kwargs)

    @property
    def counters(self) -> dict[str, int]:
        return asdict(self._draft_worker.counters)


def add_counters(_result, internal_state, state: dict) -> None:
    """AFTER SGLang's own speculative figures in `/server_info`."""
    worker = internal_state.scheduler.draft_worker
    if isinstance(worker, PEagleWorker):
        state["peagle"] = worker.counters
