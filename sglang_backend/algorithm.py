"""What `--speculative-algorithm PEAGLE` is to SGLang: an EAGLE-3 whose drafter needs one pass per step."""

from __future__ import annotations

import math
from collections.abc import Callable

from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from sglang_backend.corrections.adaptive import max_num_draft_tokens

NAME = "PEAGLE"


class PEagleAlgorithm(CustomSpecAlgo):
    """Duck-types SGLang's enum. SGLang asks `is_*` for capabilities, hence each override and what it is for:

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
        """Half of the KV slots that a request must hold past its committed length (SGLang reserves twice this number).

        Under overlap the scheduler's length lags by up to K+1 tokens; from the true length, mask rows reach 2K further.
        """
        args = resolving_view(server_args)
        if args.speculative_num_draft_tokens is None:
            return None
        k = max_num_draft_tokens(args)
        return max(k + 1, reserved_slots(k))


def reserved_slots(num_draft_tokens: int) -> int:
    """ceil((3K + 1) / 2), see `resolve_max_speculative_num_draft_tokens`."""
    return math.ceil((3 * num_draft_tokens + 1) / 2)


def drafts_a_chain(original: Callable[[str], bool], algorithm: str) -> bool:
    """AROUND SGLang's _forces_eagle_topk_one, asked before `validate`: on Blackwell, trtllm_mha is for chains."""
    return algorithm.upper() == NAME or original(algorithm)


def register() -> None:
    """Enter PEAGLE into SGLang's registry; again in the same process is harmless."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.speculative.spec_registry import get_spec

    from sglang_backend.server_args import validate

    if get_spec(NAME) is not None:
        return
    target = "sglang.srt.arg_groups.model_override_base._forces_eagle_topk_one"
    HookRegistry.register(target, drafts_a_chain, HookType.AROUND)

    @SpeculativeAlgorithm.register(
        NAME, supports_overlap=True, validate_server_args=validate, spec_class=PEagleAlgorithm
    )
    def _worker(server_args) -> type:
        from sglang_backend.worker import PEagleWorker

        return PEagleWorker
