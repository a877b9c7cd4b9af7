"""The PEAGLE worker: SGLang's V2 EAGLE worker around the one pass of `drafter_pass`. Here is what sets it up."""

from __future__ import annotations

import logging
import time

import torch
from sglang.srt.runtime_context import get_schedule, get_spec
from sglang.srt.speculative import eagle_worker_v2
from sglang.srt.speculative.adaptive_runtime_state import AdaptiveController
from sglang.srt.speculative.adaptive_spec_params import AdaptiveSpeculativeParams
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.draft_utils import DraftBackendFactory
from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2
from sglang.srt.speculative.spec_utils import draft_pp_context, draft_tp_context
from sglang.srt.utils import get_available_gpu_memory, log_info_on_rank0

from sglang_backend import graphs
from sglang_backend.confidence import ConfidentSteps, least_confidence
from sglang_backend.counters import Counters
from sglang_backend.draft_distributions import DraftDistributions
from sglang_backend.drafter_pass import DrafterPass, share
from sglang_backend.dump import drafter_passes
from sglang_backend.row_budget import largest_num_drafts, positions_past_length
from sglang_backend.texts import Texts

logger = logging.getLogger(__name__)

PHASE = "draft_extend"  # what SGLang calls this pass where it adds up memory and time


class PEagleDraftWorker(DrafterPass):
    """The draft worker's weights, memory, attention and graphs."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.counters = Counters()
        self.recorder = drafter_passes.from_environment()
        self.relay_width = largest_num_drafts(get_spec())
        self.by_confidence = least_confidence(get_spec()) is not None
        self.draft_extend_attn_backend = None
        self.cuda_graph_runner_for_draft_extend: graphs.DraftGraphs | None = None
        self.certain = torch.ones(1, device=self.draft_runner.device)
        # The drafter's attention backends size their page tables and indices by its context length.
        self.draft_runner.model_config.context_len += positions_past_length(self.relay_width)
        self.mask_token_id = self.draft_runner.model.head.mask_token_id
        self.samples_drafts = get_spec().speculative_use_rejection_sampling
        if self.samples_drafts:  # now, for SGLang sizes the KV pool by what both models have left
            requests = get_schedule().max_running_requests + 1  # rows of its table; the first is nobody's
            device = self.draft_runner.device
            self.distributions = DraftDistributions(requests, self.relay_width, self._target_vocab_size, device)

    def alloc_memory_pool(
        self, memory_pool_config=None, req_to_token_pool=None, token_to_kv_pool_allocator=None
    ) -> None:
        """Allocate as EAGLE does, but admit a draft vocabulary under rejection sampling (see `proposals`)."""
        self.req_to_token_pool = req_to_token_pool
        self.token_to_kv_pool_allocator = token_to_kv_pool_allocator
        self.draft_worker.alloc_memory_pool(
            memory_pool_config=memory_pool_config,
            req_to_token_pool=req_to_token_pool,
            token_to_kv_pool_allocator=token_to_kv_pool_allocator,
        )
        if self.draft_runner.model.correction is not None:
            slots = token_to_kv_pool_allocator.size + token_to_kv_pool_allocator.page_size  # the first page is padding
            self.draft_runner.model.texts = Texts(slots, req_to_token_pool.req_to_token)
        self.init_lm_head()

    def init_lm_head(self) -> None:
        embed, head = self._resolve_shared_embed_and_head()
        model = self.draft_runner.model
        model.share_with_target(embed, head)
        model.unknown_ids = model.head.vocab_size < self._target_vocab_size
        self.hot_token_id = model.hot_token_id  # one tensor, so that weight updates reach it

    def init_attention_backend(self) -> None:
        """Build the backend of our pass alone: there are no draft decode steps, hence no multi-step backend."""
        if self.by_confidence and self.draft_extend_attn_backend is not None:
            return  # another K to verify, the same pass
        factory = DraftBackendFactory(self.draft_runner, self.topk, self.speculative_num_steps)
        self.draft_attn_backend = None
        with graphs.rows_per_request(self.num_drafts):
            self.draft_extend_attn_backend = factory.create_draft_extend_backend()
        self.draft_runner.draft_attn_backend = None
        if self.draft_extend_attn_backend is not None:
            self.draft_runner.attn_backend = self.draft_extend_attn_backend

    def init_cuda_graphs(self) -> None:
        """Capture as SGLang does, without its graphs of the drafter's prefill: our prefill passes run eagerly."""
        with draft_pp_context(), draft_tp_context(self.parallel_layout):
            self.draft_worker.init_cuda_graphs(capture_decode_cuda_graph=False)
            self._capture_cuda_graphs()

    def _capture_cuda_graphs(self) -> None:
        if self.by_confidence and self.cuda_graph_runner_for_draft_extend is not None:
            return
        self.cuda_graph_runner = self.cuda_graph_runner_for_draft_extend = None
        if not graphs.wanted(self.draft_extend_attn_backend):
            return
        started, before = time.perf_counter(), get_available_gpu_memory(self.device, self.gpu_id)
        log_info_on_rank0(logger, f"Capture PEAGLE draft CUDA graphs begin. K={self.num_drafts}, {before=:.2f} GB")
        self.cuda_graph_runner_for_draft_extend = graphs.DraftGraphs(self)
        seconds, used = time.perf_counter() - started, before - get_available_gpu_memory(self.device, self.gpu_id)
        # Each K of an adaptive server adds to SGLang's table of memory and time at start.
        for total, more in (
            (self._specialized_graph_memory_usage, used),
            (self._specialized_graph_time_usage, seconds),
        ):
            total[PHASE] = total.get(PHASE, 0.0) + more
        log_info_on_rank0(
            logger,
            f"Capture PEAGLE draft CUDA graphs end. K={self.num_drafts}, {seconds=:.2f}, mem usage={used:.2f} GB",
        )


class PEagleWorker(EAGLEWorkerV2):
    """EAGLEWorkerV2 around our draft worker. Its constructor builds its own kind of draft worker, hence ours."""

    def __init__(self, server_args, gpu_id: int, nccl_port: int, target_worker) -> None:
        from sglang.srt.runtime_context import get_device
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
        self.confident: ConfidentSteps | None = None
        if spec.speculative_adaptive:
            table = self.speculative_num_steps, spec.speculative_adaptive_config
            if (least := least_confidence(spec)) is not None:
                self.confident = ConfidentSteps(*table, least)
            self.adaptive_controller = AdaptiveController(self, self.confident or AdaptiveSpeculativeParams(*table))
        self.plan_stream, self.plan_stream_ctx = get_plan_stream(self.device)
        self._target_worker = target_worker
        self._hosts_draft = True
        self._draft_worker = PEagleDraftWorker(server_args, gpu_id, nccl_port, target_worker)

    def forward_batch_generation(self, batch, *args, **kwargs):
        """Run a step as EAGLE does; before a decode step look at the confidence in its drafts."""
        if self.confident is not None and batch.forward_mode.is_decode() and batch.spec_info is not None:
            share(batch.spec_info.topk_p)
            self.confident.look_at(batch.spec_info.topk_p)
        return super().forward_batch_generation(batch, *args, **kwargs)

    def apply_runtime_state(self, state) -> None:
        """Switch to another K; without SGLang's line in the log where that may happen at every step."""
        eagle_worker_v2.logger.disabled = self.confident is not None
        try:
            super().apply_runtime_state(state)
        finally:
            eagle_worker_v2.logger.disabled = False

    @property
    def counters(self) -> Counters:
        return self._draft_worker.counters
