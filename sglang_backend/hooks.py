"""Everything that this plugin changes in SGLang 0.5.23, in one table: the checklist of an upgrade (docs/serving.md).

Beside it stand what the CPU platform replaces (`cpu/hooks.py`) and what SGLang offers plugins itself: the algorithm
(`algorithm.py`), the platform (`cpu/platform.py`), an attention backend (`cpu/attention.py`).
"""

from __future__ import annotations

import functools
from pathlib import Path

from sglang_backend import counters, head_choice, head_config, target_format
from sglang_backend.corrections import (
    adaptive,
    chain_attention,
    context_limit,
    draft_memory,
    gemma_states,
    lora,
    min_p,
    penalties,
    reasoning_tokens,
    refused_requests,
    weight_updates,
)
from sglang_backend.dump.hidden_states import Capture
from sglang_backend.patching import Hook, Kind, install, require

CONTROLLER = "sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController."
UPDATER_MANAGER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager."
UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater."
BY_NAME = "SGLang asks for a capability of the algorithm, not for its name"

# In every process that loads SGLang's plugins; without PEAGLE they only refuse GGUF on our CPU platform.
HOOKS = (
    # What a target and a head are
    Hook(
        "sglang.srt.arg_groups.model_path_hook.handle_model_source_paths",
        Kind.AFTER,
        target_format.refuse_gguf,
        "the drafter shares the target's embedding, which a GGUF target keeps quantised; a CPU has no kernels",
    ),
    Hook(
        "sglang.srt.arg_groups.speculative_hook.handle_speculative_decoding",
        Kind.BEFORE,
        head_choice.choose_head,
        "what is no P-EAGLE head is refused in a sentence, before SGLang reads its config; one snapshot is served",
    ),
    Hook(
        "sglang.srt.utils.hf_transformers_utils.get_config",
        Kind.AROUND,
        head_config.load_nested_config,
        "speculators' nested config has no model_type that transformers knows",
    ),
    Hook(
        "sglang.srt.configs.model_config.ModelConfig._config_draft_model",
        Kind.AFTER,
        head_config.normalise,
        "heads of every spelling become our model class, with sizes and aux layers where SGLang looks for them",
    ),
    Hook(
        "sglang.srt.configs.model_config.ModelConfig.__init__",
        Kind.AROUND,
        head_config.without_overrides,
        "--json-model-override-args speaks of the target",
        "SGLang does not apply it to drafters",
    ),
    Hook(
        "sglang.srt.configs.model_config.ModelConfig._derive_context_length",
        Kind.AROUND,
        head_config.keep_target_context,
        "a head whose config names a shorter context drafts past it, too",
        "SGLang serves a drafter of a shorter context",
    ),
    # Where SGLang lists its algorithms by name
    Hook(
        "sglang.srt.arg_groups.model_override_base._forces_eagle_topk_one",
        Kind.AROUND,
        chain_attention.let_peagle_in,
        "on Blackwell trtllm_mha is for chains, and PEAGLE drafts chains",
        BY_NAME,
    ),
    Hook(
        "sglang.srt.speculative.adaptive_spec_params.adaptive_unsupported_reason",
        Kind.AROUND,
        adaptive.let_peagle_in,
        "K may change between steps",
        BY_NAME,
    ),
    Hook(
        "sglang.srt.arg_groups.lora_hook.check_lora_speculative_compatibility",
        Kind.AROUND,
        lora.let_peagle_in,
        "a verification of PEAGLE has the same number of rows for every request, which is what adapters need",
        BY_NAME,
    ),
    # What does not fit a drafter of 2K rows, or one with heads and a dtype of its own
    Hook(
        "sglang.srt.mem_cache.allocation_sizing.get_req_to_token_extra_context_len",
        Kind.AFTER,
        context_limit.widen_kv_slot_table,
        "rows of the last step stand up to 3K past the context limit",
        "SGLang's table of KV slots has room for a whole reservation past the limit",
    ),
    Hook(
        "sglang.srt.managers.utils.compute_num_reserved_tokens",
        Kind.AFTER,
        context_limit.reserve_nothing,
        "the reservation lies past the context, so a request may use all of the context",
        "SGLang does not count it as the user's tokens",
    ),
    Hook(
        "sglang.srt.model_executor.pool_configurator.create_memory_pool_configurator",
        Kind.BEFORE,
        draft_memory.count_drafter_layers,
        "a layer of the drafter is not as large as one of the target",
        "SGLang counts the drafter's KV at the drafter's sizes",
    ),
    Hook(
        "sglang.srt.model_executor.model_runner_components.attention_backend_setup.configure_aux_hidden_state_capture",
        Kind.AFTER,
        gemma_states.add_residuals,
        "Gemma 3's captured states lack the residual",
        "SGLang captures Gemma 3's states with their residual",
    ),
    # What would end the scheduler, or reach the wrong model
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request",
        Kind.BEFORE,
        refused_requests.refuse,
        "prompts without tokens end the scheduler; the drafter has no embedding of images",
        "SGLang refuses empty prompts, and knows algorithms that draft for text alone",
    ),
    Hook(
        UPDATER_MANAGER + "update_weights_from_disk",
        Kind.AROUND,
        weight_updates.refuse_from_disk,
        "a head that cannot take over is refused before anything changes",
        "SGLang lets a model refuse an update before it loads one",
    ),
    Hook(
        UPDATER + "update_weights_from_disk",
        Kind.AROUND,
        weight_updates.update_from_disk,
        "one directory is loaded into target and drafter alike",
        "/update_weights_from_disk has a selector",
    ),
    Hook(
        UPDATER + "update_weights_from_tensor",
        Kind.AROUND,
        weight_updates.update_from_tensor,
        "a loader that raises ends the scheduler",
        "SGLang answers a loader's error",
    ),
    Hook(
        UPDATER + "end_weight_update",
        Kind.AFTER,
        weight_updates.end_update,
        "fc(mask_hidden) follows tensors that were written past load_weights",
        "SGLang calls post_load_weights there by default",
    ),
    # What an operator sees
    Hook(CONTROLLER + "_add_speculative", Kind.AFTER, counters.add_counters, "/server_info shows our counters"),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.collect_metrics",
        Kind.AFTER,
        counters.count_positions,
        "Prometheus has acceptance as an average only",
        "SGLang counts accepted drafts by position",
    ),
)

# In processes that serve PEAGLE, once SGLang asks for its worker: these modules are not loaded for every process.
VERIFICATION = (
    Hook(
        "sglang.srt.managers.schedule_batch.Req.update_finish_state",
        Kind.AFTER,
        reasoning_tokens.cut,
        "SGLang counts reasoning before it cuts an answer at its limit or stop",
        "SGLang counts what it answers",
    ),
    Hook(
        "sglang.srt.speculative.eagle_utils.eagle_sample",
        Kind.AROUND,
        penalties.sample_penalised,
        "SGLang penalises all rows of a verification alike, and counts one token a step",
        "SGLang penalises each verified row for the tokens before it",
    ),
    Hook(
        "sglang.srt.speculative.eagle_worker_common.run_eagle_verify",
        Kind.AROUND,
        min_p.verify_with_min_p,
        "the verifiers below do not see the requests",
        "SGLang applies min-p in verification",
    ),
    Hook(
        "sglang.srt.speculative.eagle_utils.tree_speculative_sampling_target_only",
        Kind.AROUND,
        min_p.filter_target,
        "min-p is not applied in verification",
        "SGLang applies min-p in verification",
    ),
    Hook(
        "sglang.srt.speculative.eagle_utils.chain_speculative_sampling_triton",
        Kind.AROUND,
        min_p.filter_target,
        "min-p is not applied in verification, in rejection sampling either",
        "SGLang applies min-p in verification",
    ),
)


def dump_hooks(directory: Path) -> tuple[Hook, ...]:
    """Return the hooks of a server that writes the target's hidden states (PEAGLE_STATES_DIR)."""
    capture = Capture(directory)
    return (
        Hook(
            "sglang.srt.arg_groups.validation_hook.handle_aux_hidden_state_capture",
            Kind.AFTER,
            capture.check,
            "a server that cannot capture every state is refused",
        ),
        Hook(
            "sglang.srt.managers.tp_worker.TpModelWorker.forward_batch_generation",
            Kind.AFTER,
            capture.take,
            "the states of each pass go to files; SGLang hands them out as JSON only",
        ),
        Hook(CONTROLLER + "_add_topology", Kind.AFTER, capture.tell, "/server_info says where the files are"),
    )


@functools.cache
def complete() -> None:
    """Put the hooks of the verification in place and check all that PEAGLE relies on. Raises InputError."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    install(VERIFICATION)
    HookRegistry.apply_hooks()
    require(HOOKS + VERIFICATION)
