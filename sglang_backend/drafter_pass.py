"""The drafter's pass: one per step, over the tokens that were accepted and K - 1 mask rows, giving the next K drafts.

A step is: verify the K drafts in hand (SGLang's own verification, sampling, grammars, logprobs), then this pass. The
drafts travel to the next step as ids; at its `draft` stage, where EAGLE runs its K passes, the verify input is built.
After a prefill the same pass runs over the rows of the prompt, with mask rows behind each prompt that is finished.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch
from sglang.srt.runtime_context import get_parallel
from sglang.srt.speculative.eagle_info import EagleDraftInput
from sglang.srt.speculative.eagle_utils import _eagle_prefill_tail_tokens
from sglang.srt.speculative.eagle_worker_common import build_eagle_verify_input, prepare_for_draft_extend
from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker
from sglang.srt.utils.common import async_h2d
from torch import Tensor

from peagle_core.told import REACH
from sglang_backend import proposals
from sglang_backend.confidence import confidences
from sglang_backend.corrections import penalties
from sglang_backend.counters import Counters
from sglang_backend.draft_distributions import DraftDistributions
from sglang_backend.draft_inputs import (
    DraftExtendInput,
    DraftRows,
    kv_slots_of,
    rows_after_prefill,
    rows_after_verify,
)
from sglang_backend.dump.drafter_passes import Recorder
from sglang_backend.row_budget import drafter_rows, verified_rows
from sglang_backend.scratch_kv_slots import ScratchKVSlots


class DrafterPass(EagleDraftWorker):
    """SGLang's draft worker with the passes replaced; `worker.PEagleDraftWorker` sets it up.

    relay_width: drafts per request in SGLang's relay buffers, the largest K; samples_drafts: whether drafts are drawn
    from the drafter's distribution (rejection sampling) or its argmax; recorder: None unless passes are dumped;
    distributions: what sampled drafts were drawn from, set where they are sampled;
    by_confidence: whether how many drafts are verified follows their confidence (`sglang_backend.confidence`);
    certain: float32[1], the 1 that stands for each draft else where SGLang relays scores of a tree.
    """

    by_confidence: bool = False
    certain: Tensor
    counters: Counters
    distributions: DraftDistributions
    recorder: Recorder | None
    relay_width: int
    mask_token_id: int
    samples_drafts: bool

    @property
    def num_verified(self) -> int:
        """Return how many drafts the step in hand verifies; adaptive speculation changes it between steps."""
        return self.speculative_num_steps

    @property
    def num_drafts(self) -> int:
        """Return K of a pass: what is verified, or, where that follows confidence, always the most."""
        return self.relay_width if self.by_confidence else self.speculative_num_steps

    @property
    def _target_vocab_size(self) -> int:
        return self.target_worker.model_config.vocab_size

    def _draft_extend_for_decode(self, batch, batch_result, *, kv_loc_plan=None) -> None:
        """Run the one drafter pass of a decode step: 2K rows per request at positions seq_lens, seq_lens + 1, ..."""
        self.counters.decode_steps += 1
        runner, drafts = self.cuda_graph_runner_for_draft_extend, None
        if runner is not None and runner.fits(batch.seq_lens.shape[0]):
            output, drafts = runner.draft(batch, batch_result)
        else:
            output = self.draft_runner.forward(self._decode_batch(batch, batch_result)).logits_output
        self.counters.decode_drafter_passes += 1
        self._set_drafts(batch_result.next_draft_input, output, batch, batch_result.new_seq_lens, drafts)

    def _decode_batch(self, batch, batch_result) -> ForwardBatch:
        """Return SGLang's batch of a decode step's rows, where no graph has them; `batch` is changed for it."""
        width = drafter_rows(self.num_drafts)
        rows = rows_after_verify(
            batch_result.next_token_ids,
            batch_result.accept_lens,
            batch.seq_lens,
            batch.req_pool_indices,
            self.req_to_token_pool.req_to_token,
            self.num_drafts,
            self.mask_token_id,
            self.num_verified,
        )
        batch.out_cache_loc = rows.kv_slots
        extend_input = DraftExtendInput(
            hidden_states=batch_result.logits_output.hidden_states,
            source=rows.source,
            select_index=rows.select_index,
            positions=rows.positions,
            num_accept_tokens=batch_result.accept_lens,
            num_tokens_per_req=width,
            num_tokens_for_logprob_per_req=width,
        )
        return prepare_for_draft_extend(
            extend_input,
            batch,
            rows.input_ids,
            width,
            self.draft_runner,
            None,
            return_hidden_states_before_norm=False,
        )

    def _draft_extend_for_prefill(
        self, batch, target_hidden_states, next_token_ids, mm_input_embeds=None, kv_loc_plan=None
    ) -> EagleDraftInput:
        """Fill the drafter's KV with the prompt rows of this pass and draft K tokens for every finished prompt."""
        lengths = batch.seq_lens_cpu.tolist()
        finished = [request is not batch.chunked_req for request in batch.reqs]
        masks = [self.num_drafts - 1 if done else 0 for done in finished]
        req_to_token = self.req_to_token_pool.req_to_token
        with ScratchKVSlots(batch, self.token_to_kv_pool_allocator, req_to_token, lengths, masks) as scratch:
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
            output = self.draft_runner.forward(forward_batch).logits_output
        self.counters.prefill_drafter_passes += 1
        draft_input = EagleDraftInput(
            bonus_tokens=next_token_ids, num_tokens_per_req=1, num_tokens_for_logprob_per_req=1
        )
        self._set_drafts(draft_input, output, batch, batch.seq_lens)
        penalties.start(batch.reqs, finished, next_token_ids, self._target_vocab_size)
        return draft_input

    def _prefill_batch(self, batch, rows: DraftRows, masks: list[int], hidden_states: Tensor) -> ForwardBatch:
        """Return SGLang's prefill batch with mask rows behind each finished prompt."""
        extended = copy.copy(batch)
        extended.input_ids = rows.input_ids
        extended.input_embeds = extended.replace_embeds = None  # of the prompt, for the target; the drafter has ids
        extended.extend_lens = [n + m for n, m in zip(batch.extend_lens, masks, strict=True)]
        extended.extend_num_tokens = len(rows.input_ids)
        extended.seq_lens_cpu = batch.seq_lens_cpu + torch.tensor(masks)
        extended.seq_lens = batch.seq_lens + async_h2d(masks, dtype=torch.int64, device=batch.seq_lens.device)
        extended.seq_lens_sum = int(extended.seq_lens_cpu.sum())
        ends = extended.seq_lens_cpu.tolist()
        extended.out_cache_loc = kv_slots_of(
            self.req_to_token_pool.req_to_token,
            batch.req_pool_indices_cpu.tolist(),
            [end - length for end, length in zip(ends, extended.extend_lens, strict=True)],
            extended.extend_lens,
        )
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

    def _set_drafts(
        self,
        draft_input: EagleDraftInput,
        output: LogitsProcessorOutput,
        batch,
        lengths: Tensor,
        drafts: Tensor | None = None,
    ) -> None:
        """Enter the drafts of each request, as target ids.

        output: logits [bs * K, V_d], and states [bs * K, H] of a head with a correction; lengths: int64[bs], one less
        than the tokens each request has so far; drafts: int64[bs, K], where a graph has computed the argmax already.
        """
        logits = output.next_token_logits
        by_request = logits.view(-1, self.num_drafts, logits.shape[-1])
        chain = None if drafts is not None else self._chain(batch, lengths, output.hidden_states)
        if self.samples_drafts:
            proposal = proposals.propose_sampled(by_request, self.hot_token_id, batch.sampling_info, lengths + 1, chain)
            if chain is None:
                share(proposal.token_ids)
        elif drafts is not None:
            proposal = proposals.Proposal(drafts)
        else:
            proposal = proposals.propose_greedy(by_request, self.hot_token_id, chain)
        ids, certainty = proposal.token_ids, self.certain
        if self.by_confidence:  # a chain has corrected the logits
            certainty = confidences(by_request, self.draft_runner.model.drafted_outright(ids))
        if proposal.probs is not None:
            self.distributions.write(batch.req_pool_indices, proposal.probs, self.hot_token_id)
            if (outright := self.draft_runner.model.drafted_outright(ids)) is not None:
                self.distributions.be_certain(batch.req_pool_indices, ids, outright)
        if self.recorder is not None:
            self.recorder.record([r.rid for r in batch.reqs], lengths + 1, ids, logits)
        # SGLang's relay buffers have one width; where K is to rise, the tokens missing are drafted as 0 for one step.
        if missing := self.relay_width - self.num_drafts:  # padding by nothing would copy
            ids = F.pad(ids, (0, missing))
        draft_input.topk_index, draft_input.draft_probs = ids, None
        draft_input.topk_p = certainty.expand(ids.shape)
        draft_input.hidden_states = None

    def _chain(self, batch, lengths: Tensor, states: Tensor | None) -> proposals.Chain | None:
        """Return what makes drafts follow from each other, None where there are no states, for want of a correction."""
        if states is None:
            return None
        by_request = states.view(-1, self.num_drafts, states.shape[-1])
        model = self.draft_runner.model
        longest = REACH
        if lengths.device.type == "cpu":  # elsewhere SGLang may have no lengths on the host
            longest = int(batch.seq_lens_cpu.max()) + verified_rows(self.num_verified)
        return proposals.Chain(model, by_request, model.texts.read(batch.req_pool_indices, lengths, longest), share)

    def draft(self, batch, *, with_topology: bool = False):
        """Return the verify input of the drafts that came with the batch; no drafter pass here."""
        draft_input: EagleDraftInput = batch.spec_info
        bs, sampling = batch.seq_lens.shape[0], batch.sampling_info
        drafts, probs = draft_input.topk_index[:, : self.num_verified], None
        self.counters.verified_drafts += bs * self.num_verified
        if self.samples_drafts and not sampling.is_all_greedy:  # greedy verification asks for none
            greedy = sampling.top_ks <= 1 if sampling.need_top_k_sampling else None
            probs = self.distributions.read(batch.req_pool_indices, drafts, greedy)
        return build_eagle_verify_input(
            batch,
            draft_input,
            self._topk1_parents_prealloc[:bs],
            self._topk1_score_indices_prealloc[:bs],
            drafts,
            probs,
            target_worker=self.target_worker,
            topk=1,
            num_steps=self.num_verified,
            num_draft_tokens=verified_rows(self.num_verified),
            tree_mask_mode=self.tree_mask_mode,
            device=self.device,
        )


def share(drafts: Tensor) -> None:
    """Make drafts, or the confidence in them, the first rank's, in place: all ranks must verify alike."""
    if (group := get_parallel().tp_group).world_size > 1:
        group.broadcast(drafts, src=0)
