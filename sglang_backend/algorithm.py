"""What `--speculative-algorithm PEAGLE` is to SGLang: an EAGLE-3 whose drafter needs one pass per step."""

from __future__ import annotations

from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from sglang_backend import NAME
from sglang_backend.row_budget import largest_num_drafts, reserved_kv_slots, verified_rows


class PEagleAlgorithm(CustomSpecAlgo):
    """Duck-type SGLang's enum of algorithms.

    SGLang asks `is_*` for capabilities, hence each override and what it is for:

    is_eagle, is_eagle3      the target captures aux states; draft KV pools are sized; the radix cache keys pairs of
                             tokens, so that draft KV (which depends on the next token) is shared correctly
    supports_grammar_overlap grammars advance inside verification, which is SGLang's own
    need_topk                the overlap relay carries topk_index, for us the K draft ids of each request
    carries_draft_hidden_states  no: nothing but ids goes from one step to the next
    supports_prefill_shared_read_done  no: the pass after a prefill takes KV slots and gives them back on the forward
                             stream, so the scheduler's stream has to wait for all of it before it hands out slots
    """

    def is_eagle(self) -> bool:
        return True

    def is_eagle3(self) -> bool:
        return True

    def supports_grammar_overlap(self) -> bool:
        return True

    def need_topk(self) -> bool:
        return True

    def carries_draft_hidden_states(self) -> bool:
        return False

    def supports_prefill_shared_read_done(self) -> bool:
        return False

    def get_platform_worker_cls(self) -> type | None:
        return None

    def create_future_map(self, device, req_to_token_pool, needs_cpu_seq_lens=True, needs_confidence_relay=False):
        from sglang.srt.managers.overlap_utils import FutureMap

        return FutureMap(device, self, req_to_token_pool, needs_cpu_seq_lens, needs_confidence_relay)

    def handle_server_args(self, server_args) -> None:
        from sglang_backend.server_args import apply_defaults

        apply_defaults(server_args)

    def resolve_max_speculative_num_draft_tokens(self, server_args) -> int | None:
        """Return half of the KV slots that a request must hold past its length: SGLang reserves twice this number."""
        args = resolving_view(server_args)
        if args.speculative_num_draft_tokens is None:
            return None
        k = largest_num_drafts(args)
        return max(verified_rows(k), reserved_kv_slots(k))


def register() -> None:
    """Enter PEAGLE into SGLang's registry; again in the same process is harmless."""
    from sglang.srt.speculative.spec_registry import get_spec

    from sglang_backend.server_args import validate

    if get_spec(NAME) is not None:
        return

    @SpeculativeAlgorithm.register(
        NAME, supports_overlap=True, validate_server_args=validate, spec_class=PEagleAlgorithm
    )
    def _worker(server_args) -> type:
        from sglang_backend import hooks
        from sglang_backend.worker import PEagleWorker

        hooks.complete()
        return PEagleWorker
