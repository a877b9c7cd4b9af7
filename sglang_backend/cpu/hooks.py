"""What the CPU platform replaces in SGLang 0.5.23: GPU kernels, linear layers, and checks that know CPUs by name."""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.layers.quantization.mxfp4 import Mxfp4Config

from sglang_backend.cpu import attention, linear, mxfp4, torch_kernels
from sglang_backend.patching import Hook, Kind

OPS = "sglang.kernels.ops."
VERIFIERS = "sglang.srt.speculative.eagle_utils."
UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater."
FACTORY = "sglang.srt.speculative.draft_utils.DraftBackendFactory."


def _kernel(target: str, ours: Callable) -> Hook:
    return Hook(target, Kind.REPLACE, ours, "SGLang's kernel is Triton or CUDA")


def _absent(name: str, ours: Callable) -> Hook:
    """Stand for a kernel that SGLang has as None for this device, so there is nothing to wrap."""
    return Hook(VERIFIERS + name, Kind.SET, ours, "SGLang has no kernel for the device")


def _update(name: str) -> Hook:
    return Hook(UPDATER + name, Kind.BEFORE, linear.note_update, "packed copies of the weights follow them")


CPU_HOOKS = (
    _kernel(OPS + "speculative.spec_tree.build_tree_kernel_efficient_func", torch_kernels.build_chain),
    _kernel(OPS + "speculative.spec_tree.verify_tree_greedy_func", torch_kernels.verify_greedy),
    _kernel(OPS + "speculative.eagle.fill_bonus_tokens_func", torch_kernels.fill_bonus_tokens),
    _kernel(
        OPS + "speculative.cache_locs.assign_draft_cache_locs_contiguous_func", torch_kernels.assign_draft_cache_locs
    ),
    _kernel(OPS + "memory.common.get_last_loc_triton", torch_kernels.last_kv_slots),
    _kernel("sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func", torch_kernels.assign_req_to_token),
    _kernel(OPS + "speculative.gather_spec_extras.gather_spec_extras", torch_kernels.gather_spec_extras),
    _kernel(OPS + "speculative.row_argmax.row_argmax", torch_kernels.row_argmax),
    _kernel(OPS + "speculative.reject_sampling.chain_speculative_sampling_triton", torch_kernels.verify_sampling),
    _kernel(
        "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe.swiglu_gpt_oss_sigmoid_alpha",
        torch_kernels.swiglu_gpt_oss,
    ),
    _absent("tree_speculative_sampling_target_only", torch_kernels.verify_sampling),
    _absent("top_k_renorm_prob", torch_kernels.top_k_renorm),
    _absent("top_p_renorm_prob", torch_kernels.top_p_renorm),
    # Attention
    Hook(
        FACTORY + "create_decode_backend",
        Kind.REPLACE,
        attention.decode_backend,
        "SGLang's factory of the drafter's attention knows a fixed list of backends",
    ),
    Hook(
        FACTORY + "create_draft_extend_backend",
        Kind.REPLACE,
        attention.extend_backend,
        "SGLang's factory of the drafter's attention knows a fixed list of backends",
    ),
    Hook(
        "sglang.srt.arg_groups.model_hook.attention_backends_of",
        Kind.SET,
        attention.backends_as_listed,
        "SGLang serves gpt-oss on backends that it lists by name; in this one check alone, ours goes by one of them",
    ),
    # Linear layers
    Hook(
        "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply",
        Kind.AROUND,
        linear.apply_linear,
        "in float32, oneDNN over packed weights takes half the time of MKL for the rows of a verification",
    ),
    Hook(
        "sglang.srt.layers.logits_processor.LogitsProcessor._compute_lm_head",
        Kind.AROUND,
        linear.compute_lm_head,
        "the same for the output head",
    ),
    _update("update_weights_from_disk"),
    _update("load_weights_from_distributed"),
    _update("update_weights_from_tensor"),
    _update("update_weights_from_ipc"),
    _update("end_weight_update"),
    # MXFP4 experts, unpacked as they are loaded
    Hook(
        "triton_kernels.numerics_details.mxfp.upcast_from_mxfp",
        Kind.REPLACE,
        mxfp4.upcast,
        "SGLang's kernel is Triton or CUDA",
    ),
    Hook(
        "sglang.srt.layers.quantization.QUANTIZATION_METHODS.mxfp4",
        Kind.SET,
        Mxfp4Config,
        "SGLang offers MXFP4 on the devices that it knows",
    ),
    Hook(
        "sglang.srt.layers.quantization.mxfp4._is_cpu",
        Kind.SET,
        True,
        "SGLang unpacks MXFP4 where this flag says that the device is a CPU",
    ),
)
